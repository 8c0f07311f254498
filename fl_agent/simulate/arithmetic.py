"""The numbers of a federated training without masks and messages, for research on data that are public anyway.

Contributions, noise, rounding, sum and steps are those of real hospitals, so results have the same distribution; only
who could see what differs: here one process sees everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from secure_infer.models import Weights

from ..learning import server, site
from ..learning.metrics import Metrics
from ..learning.plan import Plan
from ..learning.server import Training
from ..learning.site import Examples
from ..learning.terms import Epsilons, epsilons, header
from ..randomness import SecureSource
from ..secagg.encode import decode, encode
from ..secagg.noise import add_noise


@dataclass(frozen=True)
class Trained:
    """What came of a plan.

    Attributes
    ----------
    weights : dict
        `head.weight`, shape (3, channels), and `head.bias`, shape (3,), for features as they are.
    epsilons : Epsilons
    metrics : tuple of Metrics
        Noised, of each round that has them.
    """

    weights: Weights
    epsilons: Epsilons
    metrics: tuple[Metrics, ...]


def train(
    plan: Plan,
    sites: Mapping[str, Examples],
    progress: Callable[[int, int], None] = lambda done, sums: None,
) -> Trained:
    """Run a plan with every site present in every round.

    Parameters
    ----------
    plan : Plan
    sites : mapping of str to Examples
        By the members' names.
    progress : callable
        Called with (sums done, of all).
    """
    source = SecureSource()
    training, measured = Training.start(plan), []
    cohort = [bytes.fromhex(one.identity) for one in plan.members]
    while not server.finished(plan, training):
        done = training.done
        content = training.state().encode()
        terms = header(plan, done, content, done + 1, cohort)
        total = np.zeros(terms.dimension, dtype=np.uint32)
        for member in plan.members:
            words = np.empty(terms.dimension, dtype=np.uint32)
            encode(terms, site.contribution(plan, member, training.state(), sites[member.name], source), words)
            add_noise(terms, words)
            total += words
        training, found = server.after(plan, training, decode(terms, total), plan.members)
        measured += [found] if found is not None else []
        progress(done + 1, plan.sums)
    return Trained(server.published(plan, training), epsilons(plan), tuple(measured))
