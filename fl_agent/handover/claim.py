"""Whether a card claims no more privacy than its mechanisms give (composition; Mironov 2017, arXiv 1702.07476)."""

from __future__ import annotations

from collections.abc import Callable

from dicom_node.core.errors import Refused
from secure_infer.card import Mechanism, Privacy

from ..ledger.accountant import loss, total

#: Two programs may add the same numbers in another order.
ROUNDING = 1e-9
#: The slower bound, whose time and memory grow with epsilon, is never this many times tighter.
TIGHTER = 2.0


def require_claimed(privacy: Privacy) -> None:
    """Recompute both epsilons of a card.

    What names a partition shares no patient with another partition; what names none may concern everybody.

    Raises
    ------
    Refused
        A claimed epsilon is less than what the mechanisms give (``epsilon-understated``).
    """
    _require("epsilon", privacy.epsilon, lambda: _least(privacy))
    if privacy.epsilon_alone is not None:
        _require("epsilon_alone", privacy.epsilon_alone, lambda: _composed(privacy, alone=True))


def _require(name: str, claimed: float, compute: Callable[[], float]) -> None:
    found = compute()
    if not found <= claimed * (1 + ROUNDING):
        raise Refused(
            f"the card claims {name} {claimed:g}, but its mechanisms cost {found:.3f}: ask its publisher",
            code="epsilon-understated",
        )


def _least(privacy: Privacy) -> float:
    """Take the smaller of two upper bounds, the slower one only where the faster does not do."""
    bound = _composed(privacy, alone=False)
    sampled = [one for one in privacy.mechanisms if isinstance(one, Mechanism)]
    close = privacy.epsilon < bound <= TIGHTER * privacy.epsilon
    if not close or len(sampled) < len(privacy.mechanisms):
        return bound
    from ..accounting import epsilon  # noqa: PLC0415 - few cards need it, and Opacus loads slowly

    return epsilon(sampled, privacy.delta)


def _composed(privacy: Privacy, *, alone: bool) -> float:
    partitions = {one.partition for one in privacy.mechanisms if isinstance(one, Mechanism)} or {""}
    return max(
        total(
            loss(one, alone=alone)
            for one in privacy.mechanisms
            if not isinstance(one, Mechanism) or one.partition == partition
        ).planned(privacy.delta)
        for partition in partitions
    )
