"""The discrete Gaussian is drawn exactly, rounding keeps its norm, and a round's sum holds everybody's noise."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl_agent.randomness import SecureSource
from fl_agent.secagg import noise as noise_module
from fl_agent.secagg.header import Block, Mode, PrivacyTerms
from fl_agent.secagg.noise import (
    _decide,
    conditional_limit,
    discrete_gaussian,
    nearest_limit,
    nearest_rows,
    round_rows,
    rows_limit,
)
from fl_agent.secagg.server import Server
from tests.fl_agent.secagg.consortium import Consortium, run

KEY = b"a key for tests, so draws repeat"


def probabilities(variance: int, reach: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    return weights / weights.sum()


def fits(drawn: np.ndarray, expected: np.ndarray) -> float:
    """The p value of Pearson's test, rare values at both ends joined."""
    reach = len(expected) // 2
    counts = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=len(expected))
    common = expected * len(drawn) >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * len(drawn)
    return float(stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue)


@pytest.mark.parametrize("variance", [1, 2, 3, 10, 100, 1000])
def test_draws_have_the_probabilities_of_the_discrete_gaussian(variance: int) -> None:
    drawn = discrete_gaussian(variance, 200_000, SecureSource(KEY))
    assert fits(drawn, probabilities(variance, 12 * math.isqrt(variance) + 12)) > 1e-4


def test_a_rounded_or_slightly_wider_gaussian_would_be_seen() -> None:
    expected = probabilities(3, 30)
    source = SecureSource(KEY)
    rounded = np.rint(source.normal(200_000) * math.sqrt(3)).astype(np.int64)
    assert fits(rounded, expected) < 1e-4
    zero_twice = np.where(source.coins(200_000, 0.02), 0, discrete_gaussian(3, 200_000, source))
    assert fits(zero_twice, expected) < 1e-4


@pytest.mark.parametrize("deviation", [2**10, 2**15, 2**20])
def test_wide_draws_have_their_deviation_and_reach_every_residue(deviation: int) -> None:
    drawn = discrete_gaussian(deviation**2, 100_000, SecureSource(KEY))
    assert drawn.std() == pytest.approx(deviation, rel=0.02)
    assert abs(drawn.mean()) < 5 * deviation / math.sqrt(len(drawn))
    # Uniform to within 1e-100 where the deviation is that wide; a float's grid would show here.
    assert stats.chisquare(np.bincount(drawn % 64, minlength=64)).pvalue > 1e-4
    assert stats.kstest(drawn / deviation, "norm").pvalue > 1e-4


def test_draws_are_fresh() -> None:
    one, other = (discrete_gaussian(10**6, 50, SecureSource()) for _ in range(2))
    assert (one != other).any()


def test_a_coin_too_close_for_binary64_is_decided_by_exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin of 1 every coin goes the exact way, and falls as it does by the fast one."""
    fast = discrete_gaussian(7, 300, SecureSource(KEY))
    monkeypatch.setattr(noise_module, "MARGIN", 1.0)
    np.testing.assert_array_equal(discrete_gaussian(7, 300, SecureSource(KEY)), fast)


def test_a_tie_draws_more_bits() -> None:
    """exp(-1) begins with these 64 bits, so they decide nothing, and what follows does, both ways."""
    digits = 36787944117144232159552377016146086744581113103176  # exp(-1) times 10^50
    prefix = digits * 2**64 // 10**50
    decided = {_decide(prefix, Fraction(1), SecureSource(bytes([number]) * 32)) for number in range(40)}
    assert decided == {True, False}
    assert _decide(prefix - 1, Fraction(1), SecureSource(KEY))
    assert not _decide(prefix + 1, Fraction(1), SecureSource(KEY))


@given(st.integers(1, 1000))
def test_numbers_below_a_limit_are_below_it(limit: int) -> None:
    drawn = SecureSource(KEY).below(limit, 200)
    assert drawn.shape == (200,)
    assert 0 <= drawn.min() <= drawn.max() < limit


def test_numbers_below_a_limit_are_uniform() -> None:
    assert stats.chisquare(np.bincount(SecureSource(KEY).below(5, 100_000), minlength=5)).pvalue > 1e-4


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 60), st.floats(0.01, 5), st.floats(0.001, 2), st.integers(0, 2**32))
def test_no_rounded_row_is_longer_than_the_sensitivity(
    patients: int, dimension: int, norm: float, step: float, seed: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(patients, dimension)) * 3
    rounded = round_rows(rows, norm, step, SecureSource())
    squares = [sum(int(value) ** 2 for value in row) for row in rounded]
    assert max(squares) <= conditional_limit(norm / step, dimension)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped = rows * np.minimum(1, norm / lengths) / step
    assert np.abs(rounded - clipped).max() < 1 + 1e-6 or conditional_limit(norm / step, dimension) < 1


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 60), st.floats(0.01, 5), st.floats(1e-6, 2), st.integers(0, 2**32))
def test_no_row_rounded_to_the_nearest_is_longer_than_the_sensitivity(
    patients: int, dimension: int, norm: float, step: float, seed: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(patients, dimension)) * 3
    rows[0] *= np.inf
    rounded = nearest_rows(rows, norm, step)
    assert not rounded[0].any()
    assert max(sum(int(value) ** 2 for value in row) for row in rounded) <= rows_limit(norm / step, dimension)
    lengths = np.linalg.norm(rows[1:], axis=1, keepdims=True)
    clipped = rows[1:] * np.minimum(1, norm / lengths) / step
    assert (np.abs(rounded[1:] - clipped) <= 0.5 + 1e-6).all()


def test_conditional_rounding_is_unbiased_where_the_norm_leaves_room() -> None:
    row = np.full((1, 50), 0.3)
    rounded = round_rows(np.repeat(row, 4000, axis=0), norm=10.0, step=1.0, source=SecureSource(KEY))
    assert rounded.mean() == pytest.approx(0.3, abs=0.005)


def test_rounding_without_the_condition_would_exceed_the_sensitivity() -> None:
    """Half a step in each of many coordinates: rounded up alone, the norm doubles."""
    row = np.full((200, 400), 0.5)
    free = (row > SecureSource(KEY).uniform(row.size).reshape(row.shape)).astype(np.int64)
    limit = conditional_limit(10.0, 400)
    assert ((free**2).sum(1) > limit).any() or (free**2).sum(1).max() > 100
    assert ((round_rows(row, 10.0, 1.0, SecureSource(KEY)) ** 2).sum(1) <= limit).all()


@given(st.floats(0.1, 1e5), st.integers(1, 10**7))
def test_the_conditional_bound_is_the_paper_s_and_never_above_the_worst_case(norm: float, dimension: int) -> None:
    # Kairouz, Liu, Steinke 2021, with β = e^(-1/2): c² + d/4 + c + √d/2, or (c + √d)².
    paper = min(norm**2 + dimension / 4 + norm + math.sqrt(dimension) / 2, (norm + math.sqrt(dimension)) ** 2)
    assert conditional_limit(norm, dimension) == pytest.approx(paper, abs=1, rel=1e-12)
    assert conditional_limit(norm, dimension) <= nearest_limit(norm, dimension)


def distributed(folder: Path, variance: int, bits: int = 32) -> Consortium:
    consortium = Consortium(folder, 4, bits=bits, lengths=(4000,))
    block = Block(4000, 1.0, 1.0 / 4096, variance)
    privacy = PrivacyTerms(Mode.DISTRIBUTED, 2, 1.0, 1.0, 1.0, 1, 2.0, 1e-5)
    consortium.header = dataclasses.replace(consortium.header, blocks=(block,), privacy=privacy)
    consortium.server = Server(consortium.header, consortium.coordinator)
    return consortium


@pytest.mark.parametrize("bits", [20, 32])
def test_a_sum_holds_the_noise_of_every_hospital_and_nothing_else(tmp_path: Path, bits: int) -> None:
    consortium = distributed(tmp_path, variance=50**2, bits=bits)
    updates = {user: [np.full(4000, user, dtype=np.int64)] for user in consortium.identities}
    run(consortium, updates)
    steps = np.rint(consortium.server.result()[0] * 4096) - sum(consortium.identities)
    assert steps.std() == pytest.approx(100, rel=0.06)
    assert stats.kstest(steps / 100, "norm").pvalue > 1e-4
