"""Where in the image an answer comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secure_infer.report import Region, frame, region_from_evidence


def _box(region: Region) -> tuple[float, float, float, float]:
    columns, rows = zip(*region.polyline, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def test_a_strong_cell_is_enclosed_at_its_place_in_the_source_image() -> None:
    evidence = np.zeros((7, 7))
    evidence[4, 1] = 1.0
    region = region_from_evidence(evidence, rows=700, columns=1400)
    assert region.kind == "evidence"
    assert _box(region) == (200, 400, 400, 500)


def test_both_lungs_are_enclosed_when_both_speak_for_pneumonia() -> None:
    evidence = np.zeros((7, 7))
    evidence[3, 1], evidence[4, 5] = 1.0, 0.6
    assert _box(region_from_evidence(evidence, 700, 700)) == (100, 300, 600, 500)


def test_weak_and_negative_cells_do_not_widen_the_box() -> None:
    evidence = np.full((7, 7), -3.0)
    evidence[2, 2], evidence[6, 6] = 1.0, 0.4
    assert _box(region_from_evidence(evidence, 700, 700)) == (200, 200, 300, 300)


def test_without_positive_evidence_the_analysed_area_is_framed() -> None:
    assert region_from_evidence(np.full((7, 7), -1.0), 600, 500) == frame(600, 500)


def test_the_frame_is_inset_by_five_to_ten_percent() -> None:
    left, top, right, bottom = _box(frame(2000, 1000))
    assert 50 <= left <= 100
    assert 100 <= top <= 200
    assert (1000 - right, 2000 - bottom) == (left, top)


@given(
    evidence=hnp.arrays(np.float64, (7, 7), elements=st.floats(-10, 10)),
    rows=st.integers(32, 6000),
    columns=st.integers(32, 6000),
)
def test_every_region_is_a_closed_box_inside_the_image(evidence: np.ndarray, rows: int, columns: int) -> None:
    region = region_from_evidence(evidence, rows, columns)
    assert region.fits(rows, columns)
    assert region.polyline[0] == region.polyline[-1]
    left, top, right, bottom = _box(region)
    assert left < right
    assert top < bottom
    assert np.float32(region.polyline).tolist() == [list(point) for point in region.polyline], "GraphicData is FL"


@pytest.mark.parametrize(
    "polyline",
    [
        (),
        ((0, 0), (1, 0), (0, 0)),
        ((0, 0), (1, 0), (1, 1), (0, 1)),
        ((0, 0), (1, 0), (1, float("nan")), (0, 0)),
        ((-1, 0), (1, 0), (1, 1), (-1, 0)),
    ],
    ids=["empty", "a line", "open", "not a number", "outside"],
)
def test_what_is_no_closed_outline_is_no_region(polyline: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match=r"closed polyline|finite"):
        Region(polyline, "evidence")


@pytest.mark.parametrize("evidence", [np.zeros(49), np.zeros((0, 7)), np.full((7, 7), np.nan)])
def test_what_is_no_finite_map_is_no_evidence(evidence: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite two-dimensional"):
        region_from_evidence(evidence, 100, 100)
