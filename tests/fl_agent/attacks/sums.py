"""Secure sums of three hospitals, one of which works for the attacker, who also is the coordinator."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fl_agent.learning.plan import Member, Plan
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.site import Examples, contribution
from fl_agent.learning.state import State
from fl_agent.learning.terms import epsilons, header, release_at, variance
from fl_agent.randomness import SecureSource
from fl_agent.secagg import client as client_module
from fl_agent.secagg.client import Client
from fl_agent.secagg.encode import Values
from fl_agent.secagg.frames import Outgoing
from fl_agent.secagg.header import Header
from fl_agent.secagg.policy import SitePolicy
from fl_agent.secagg.rounds import RoundLedger
from fl_agent.secagg.server import Server
from fl_agent.secagg.stages import Stage
from tests.fl_agent.attacks.canaries import DIRECTION, Coins, Scores
from tests.fl_agent.learning.hospitals import identity, raw
from tests.fl_agent.secagg.consortium import answers
from tests.fl_agent.trunks import setup

NAMES = ("target", "honest", "colluding")


def plan(canaries: int, epsilon: float, delta: float, rounds: int, sampling_rate: float = 1.0) -> Plan:
    """A run in mode DISTRIBUTED whose claim counts on two honest hospitals of three."""
    members = [Member(name=name, identity=raw(identity(name)).hex(), patients=canaries) for name in NAMES]
    return propose(
        "1.0",
        members,
        Features(setup("head"), ("plain",), canaries),
        Budget(epsilon, delta, "distributed", honest=2),
        default_descent(rounds, sampling_rate=sampling_rate),
        centre_noise=None,
    )


class Quiet(Client):
    """A hospital that forgets its share of the noise, by fault or because it works for the attacker."""

    def contribute(self, values: Sequence[Values]) -> list[Outgoing]:
        with mock.patch.object(client_module, "add_noise", return_value=None):
            return super().contribute(values)


def secure_sum(
    terms: Header, given: Mapping[str, Sequence[Values]], folder: Path, quiet: Collection[str]
) -> list[NDArray[np.float64]]:
    """Run a whole round of secure aggregation and return what the coordinator learns.

    Parameters
    ----------
    terms : Header
        Of a cohort of `NAMES`.
    given : mapping of str to sequence of ndarray
        What each hospital contributes.
    folder : Path
        Of the ledgers of rounds.
    quiet : collection of str
        Hospitals that add no noise.
    """
    keys = {name: identity(name) for name in NAMES}
    coordinator = Ed25519PrivateKey.generate()
    users = {terms.cohort.index(raw(key)) + 1: name for name, key in keys.items()}
    policy = SitePolicy(raw(coordinator), frozenset(terms.cohort), frozenset({terms.model}), 1e9, minimum_cohort=3)
    ledgers = {name: RoundLedger(folder / f"{name}.sqlite") for name in NAMES}
    clients = {
        user: (Quiet if name in quiet else Client)(keys[name], policy, ledgers[name]) for user, name in users.items()
    }
    server = Server(terms, coordinator)
    waiting = server.start()
    while server.stage is not Stage.DONE:
        following = []
        for user, frame in waiting:
            for one in answers(clients[user], frame, given[users[user]]):
                following += server.handle(one.frame)
        waiting = following
    for ledger in ledgers.values():
        ledger.close()
    return server.result()


def sums_scores(agreed: Plan, coins: Coins, folder: Path, quiet: Collection[str] = ("colluding",)) -> Scores:
    """Read from all sums of a run how much each canary of the target seems to be in.

    The attacker sends the same weights in every round, at which a canary's gradient is longest, and knows what the
    colluding hospital gave: nothing, without noise. The score is the logarithm of the likelihood ratio of all sums.

    Parameters
    ----------
    agreed : Plan
    coins : ndarray of bool, shape (m,)
    folder : Path
        Of the hospitals' ledgers of rounds.
    quiet : collection of str
        Hospitals that add no noise.
    """
    inside = np.flatnonzero(coins)
    features = np.zeros((len(inside), 1, len(coins)), dtype=np.float32)
    features[np.arange(len(inside)), 0, inside] = 1.0
    patients = Examples(features, np.zeros(len(inside), dtype=np.int64), np.arange(len(inside)))
    member = next(one for one in agreed.members if one.name == "target")
    source, release = SecureSource(), release_at(agreed, 0)
    # The clipped gradient of a canary has norm 1 and points against DIRECTION.
    signal = float(np.linalg.norm(DIRECTION))
    step = release.norm / agreed.resolution
    spread = signal * step * math.sqrt(agreed.honest * variance(agreed, release))
    scores = np.zeros(len(coins))
    for done in range(agreed.sums):
        state = State(done, np.zeros(agreed.channels, np.float32), np.zeros(agreed.dimension, np.float32))
        cohort = [bytes.fromhex(one.identity) for one in agreed.members]
        terms = header(agreed, done, state.encode(), done + 1, cohort)
        nothing = [np.zeros(block.length, dtype=np.int64) for block in terms.blocks]
        mine = contribution(agreed, member, state, patients, source)
        given = {"target": mine, "honest": nothing, "colluding": nothing}
        gradients = secure_sum(terms, given, folder, quiet)[0].reshape(3, -1)[:, : len(coins)]
        ratio = (-2 * signal * (DIRECTION @ gradients) - signal**2) / (2 * spread**2)
        rate = release.sampling_rate
        scores += np.logaddexp(math.log(rate) + ratio, math.log1p(-rate)) if rate < 1 else ratio
    return scores


def claimed(agreed: Plan) -> float:
    """What the plan says that the run costs a patient of the target."""
    return epsilons(agreed).claimed
