"""Three uneven hospitals whose patients' classes can be told apart, small enough for hundreds of rounds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_agent.learning.plan import Member, Plan
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.site import Examples
from fl_agent.simulate.drawn import draw
from tests.fl_agent.trunks import setup

CHANNELS = 6
SIZES = {"north": 20, "south": 35, "west": 60}


def identity(name: str) -> Ed25519PrivateKey:
    """A key that is the same in every test."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def examples(patients: int, seed: int) -> Examples:
    return draw(patients, CHANNELS, seed)


def three() -> dict[str, Examples]:
    return {name: examples(size, seed) for seed, (name, size) in enumerate(SIZES.items())}


def pooled(sites: dict[str, Examples]) -> Examples:
    """All patients in one place."""
    before = np.cumsum([0, *(one.count for one in sites.values())])
    owners = [one.patients + start for one, start in zip(sites.values(), before, strict=False)]
    return Examples(
        np.concatenate([one.features for one in sites.values()]),
        np.concatenate([one.labels for one in sites.values()]),
        np.concatenate(owners),
    )


def plan(
    mode: str = "distributed",
    epsilon: float = 3.0,
    rounds: int = 4,
    spare: int = 0,
    sizes: dict[str, int] | None = None,
    options: dict[str, Any] | None = None,
    **descent: Any,
) -> Plan:
    members = [
        Member(name=name, identity=raw(identity(name)).hex(), patients=size)
        for name, size in (SIZES if sizes is None else sizes).items()
    ]
    budget = Budget(epsilon, 1e-3, mode)
    features = Features(setup("head"), ("plain", "mirrored"), CHANNELS)
    chosen = {"learning_rate": 2.0, "clip": 0.3, **descent}
    return propose("1.0", members, features, budget, default_descent(rounds, spare, **chosen), **(options or {}))
