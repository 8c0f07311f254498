"""Learning rates over a run (cosine: Loshchilov & Hutter 2017, arXiv 1608.03983)."""

from __future__ import annotations

import math

from .plan import Plan


def descended(plan: Plan, done: int) -> int:
    """Return how many of `done` sums were steps of the descent."""
    return done - (plan.centre is not None)


def factor(plan: Plan, done: int) -> float:
    """Return what the learning rate of the step after `done` sums is multiplied by, 0..1, never 0."""
    share = descended(plan, done) / plan.descent.rounds
    return {"constant": 1.0, "cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1.0 - share}[
        plan.descent.schedule
    ]
