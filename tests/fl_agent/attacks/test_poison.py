"""A poisoned update is bounded by the clip: measured on what the coordinator learns from three hospitals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.core.errors import Refused
from fl_agent.learning.plan import Plan
from fl_agent.learning.site import Examples, contribution
from fl_agent.learning.state import State
from fl_agent.learning.terms import header, release_at
from fl_agent.randomness import SecureSource
from fl_agent.secagg.encode import Values
from tests.fl_agent.attacks.sums import NAMES, plan, secure_sum

CHANNELS = 12


@pytest.fixture(scope="module")
def agreed() -> Plan:
    return plan(CHANNELS, 3.0, 1e-4, 4)


def patients(seed: int, poison: float = 1.0) -> Examples:
    """Twelve patients; the films of the last are `poison` times as bright as films can be."""
    features = np.random.default_rng(seed).normal(size=(12, 1, CHANNELS))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    features[-1] *= poison
    return Examples(features.astype(np.float32), np.arange(12) % 3, np.arange(12))


def learned(agreed: Plan, place: Path, poison: float = 1.0, instead: list[Values] | None = None) -> NDArray[np.float64]:
    """The sum without its noise, in clips of one patient's gradient."""
    state = State(0, np.zeros(CHANNELS, np.float32), np.zeros(agreed.dimension, np.float32))
    terms = header(agreed, 0, state.encode(), 1, [bytes.fromhex(one.identity) for one in agreed.members])
    given = {
        one.name: contribution(
            agreed, one, state, patients(number, poison if one.name == "colluding" else 1.0), SecureSource()
        )
        for number, one in enumerate(agreed.members)
    }
    if instead is not None:
        given["colluding"] = instead
    return secure_sum(terms, given, place, NAMES)[0]


@pytest.mark.parametrize("poison", [1e3, 1e30, np.nan, np.inf])
def test_a_poisoned_film_moves_the_sum_by_at_most_two_clips(agreed: Plan, tmp_path: Path, poison: float) -> None:
    """Its patient's part is exchanged for another one of norm 1 at most, or for nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        moved = learned(agreed, tmp_path / "poisoned", poison) - learned(agreed, tmp_path / "honest")
    assert np.linalg.norm(moved) <= 2.001
    assert np.isfinite(moved).all()


def test_a_hospital_that_keeps_to_no_protocol_moves_the_sum_by_what_the_header_allows(
    agreed: Plan, tmp_path: Path
) -> None:
    """It may say what it likes of as many patients as it is said to have, and no more: the ring never wraps."""
    huge = [np.full(length, 2**31 - 1, dtype=np.int64) for length in release_at(agreed, 0).lengths]
    nothing = [np.zeros_like(one) for one in huge]
    moved = learned(agreed, tmp_path / "a", instead=huge) - learned(agreed, tmp_path / "b", instead=nothing)
    own = max(one.patients for one in agreed.members)
    assert np.abs(moved).max() <= own * release_at(agreed, 0).norm * 1.001
    assert np.abs(moved).max() > own


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_update_that_is_no_number_stays_where_it_is(agreed: Plan, tmp_path: Path, poison: float) -> None:
    broken = [np.full(length, poison) for length in release_at(agreed, 0).lengths]
    with pytest.raises(Refused) as raised:
        learned(agreed, tmp_path, instead=broken)
    assert raised.value.code == "non-finite-update"
