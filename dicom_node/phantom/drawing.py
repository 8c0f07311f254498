"""A frontal chest radiograph drawn from a seed: shadows of overlapping tissues, added up as in a projection."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Kind = Literal["clear", "consolidation", "diffuse"]
KINDS: tuple[Kind, ...] = ("clear", "consolidation", "diffuse")
GRID = 512  # rows on which anatomy is drawn
#: Thickness of lesion, in that of the body, from which a place counts as opaque.
OPAQUE = 0.1

Plane = NDArray[np.float64]


def draw(seed: int, kind: Kind, size: tuple[int, int] = (1024, 1280)) -> NDArray[np.uint8]:
    """Draw a frontal chest radiograph.

    Thicknesses of air, soft tissue and bone are added up and shown with a film-like curve, so that shadows overlap
    as they do in a projection.

    Parameters
    ----------
    seed : int
        Varies build, pose, lesion and noise; the same seed gives the same picture.
    kind : str
        ``clear`` lungs, one ``consolidation``, or ``diffuse`` streaky opacities on both sides.
    size : tuple of int
        (rows, columns), pixels.

    Returns
    -------
    ndarray of uint8, shape (rows, columns)
        0..255, bright is dense.
    """
    return draw_with_opacity(seed, kind, size)[0]


def draw_with_opacity(
    seed: int, kind: Kind, size: tuple[int, int] = (1024, 1280)
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw what `draw` draws, and say where its opacity is: to learn, and to measure, segmentation.

    Returns
    -------
    picture : ndarray of uint8, shape (rows, columns)
    opacity : ndarray of bool, shape (rows, columns)
        Where the lesion adds more than `OPAQUE`; nowhere in clear lungs.
    """
    random = np.random.default_rng(seed)
    rows, columns = size
    # The anatomy has no detail finer than this grid; only the noise is as fine as the picture.
    coarse = (min(rows, GRID), max(2, min(rows, GRID) * columns // rows))
    anatomy, lesion = _anatomy(random, kind, coarse)
    shown = _enlarged(anatomy, size) + random.normal(0, 2.5, size)
    picture: NDArray[np.uint8] = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
    return picture, _enlarged(lesion, size) > OPAQUE


def _anatomy(random: np.random.Generator, kind: Kind, size: tuple[int, int]) -> tuple[Plane, Plane]:
    """Give what is shown, 0..255, and the thickness of the lesion alone."""
    # x runs -1..1 from the patient's right (the picture's left), y runs 0..1 from the chin down.
    y, x = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    x = (x - random.uniform(-0.03, 0.03)) / random.uniform(0.95, 1.05)
    y = y + random.uniform(-0.02, 0.02) + 0.02 * x * random.uniform(-1, 1)

    right, left = _lung(x, y, -1, dome=random.uniform(0.74, 0.78)), _lung(x, y, 1, dome=random.uniform(0.77, 0.81))
    lungs = np.maximum(right, left)
    body = _torso(x, y)
    heart = _blob(x, y, centre=(0.13, 0.62), radii=(random.uniform(0.29, 0.34), 0.20), softness=0.035, tilt=0.45)
    vessels = _texture(random, size, 70) * np.exp(-((np.abs(x) - 0.24) ** 2) / 0.05 - (y - 0.5) ** 2 / 0.06)
    airway = np.exp(-((x / 0.025) ** 2)) * _step(0.36 - y, 0.02)

    tissue = body * (0.62 + 0.02 * _texture(random, size, 12))
    tissue += (0.20 * _step(y - 0.78, 0.05) - 0.46 * lungs * (1 - 0.85 * heart) + 0.12 * heart) * body
    tissue += 0.06 * lungs * np.clip(vessels, 0, None)
    tissue += (0.38 * np.exp(-((x / 0.11) ** 4)) - 0.18 * airway) * body
    lesion = _lesion(random, kind, x, y, right, left, size)
    tissue += lesion
    bone = _spine(x, y) + (_ribs(x, y) + _clavicles(x, y)) * body
    return np.asarray(12 + 240 * (1 - np.exp(-1.35 * (np.clip(tissue, 0, None) + 0.15 * bone)))), lesion


def _step(distance: Plane, softness: float) -> Plane:
    """0 outside (negative distance), 1 inside, over about 4 x `softness`."""
    return np.asarray(0.5 * (1 + np.tanh(distance / softness)))


def _blob(
    x: Plane, y: Plane, centre: tuple[float, float], radii: tuple[float, float], softness: float, tilt: float = 0.0
) -> Plane:
    across, down = x - centre[0], y - centre[1]
    across, down = across * np.cos(tilt) + down * np.sin(tilt), down * np.cos(tilt) - across * np.sin(tilt)
    return _step(1 - np.hypot(across / radii[0], down / radii[1]), softness / min(radii))


def _rib_cage(y: Plane) -> Plane:
    """Give half the inner width of the chest at each height."""
    return np.asarray(0.24 + 0.48 * np.clip((y - 0.14) / 0.56, 0, 1) ** 0.6)


def _lung(x: Plane, y: Plane, side: int, dome: float) -> Plane:
    """One lung field: narrow at the apex, wide below, cut off by the dome of the diaphragm."""
    outward = side * x
    inner = 0.11 + 0.03 * y
    diaphragm = dome - 0.10 * (1 - ((outward - 0.36) / 0.36) ** 2) + 0.09 * np.clip(outward - 0.42, 0, None) / 0.3
    return np.asarray(
        _step(_rib_cage(y) - outward, 0.025) * _step(outward - inner, 0.02) * _step(y - 0.15, 0.015)
        * _step(diaphragm - y, 0.010)
    )  # fmt: skip


def _torso(x: Plane, y: Plane) -> Plane:
    shoulders = 0.30 + 0.62 * np.clip((y - 0.02) / 0.17, 0, 1) ** 0.7
    flank = 0.90 - 0.08 * np.clip((y - 0.25) / 0.3, 0, 1)
    edge = np.minimum(shoulders, flank)
    thickness = np.sqrt(np.clip(1 - (x / np.maximum(edge, 0.01)) ** 2, 0, None))
    return np.asarray(_step(edge - np.abs(x), 0.015) * (0.45 + 0.55 * thickness))


def _spine(x: Plane, y: Plane) -> Plane:
    vertebrae = 0.75 + 0.25 * np.tanh(4 * np.cos(2 * np.pi * y / 0.062))
    return np.asarray(1.5 * _step(0.062 - np.abs(x), 0.012) * vertebrae)


def _ribs(x: Plane, y: Plane) -> Plane:
    """Posterior ribs, from the spine out and down, and the fainter anterior ends that slope the other way."""
    reach = np.abs(x)
    field = _step(_rib_cage(y) + 0.05 - reach, 0.012) * _step(reach - 0.06, 0.02)
    bones = np.zeros_like(x)
    for number in range(9):
        head = 0.14 + 0.066 * number
        posterior = head - 0.045 * np.sin(np.pi * reach / 0.55) + 0.16 * reach**2
        bones += _edge(y - posterior, 0.014)
        anterior = head + 0.20 - 0.22 * (reach - 0.15)
        bones += 0.45 * _edge(y - anterior, 0.013) * _step(reach - 0.30, 0.05) * (number < 7)
    return np.asarray(bones * field)


def _edge(distance: Plane, half_width: float) -> Plane:
    """Draw a tube seen from the side: brightest along its two edges, where the rays meet most cortex."""
    across = np.abs(distance) / half_width
    return np.asarray(_step(1 - across, 0.15) * (0.65 + 0.35 * np.clip(across, 0, 1) ** 3))


def _clavicles(x: Plane, y: Plane) -> Plane:
    reach = np.abs(x)
    line = 0.19 - 0.10 * (reach - 0.06) + 0.015 * np.sin(8 * reach)
    return np.asarray(2.2 * _edge(y - line, 0.016) * _step(reach - 0.07, 0.01) * _step(0.66 - reach, 0.02))


def _lesion(
    random: np.random.Generator, kind: Kind, x: Plane, y: Plane, right: Plane, left: Plane, size: tuple[int, int]
) -> Plane:
    if kind == "clear":
        return np.zeros_like(x)
    if kind == "consolidation":
        side, lung = ((-1, right), (1, left))[int(random.integers(2))]
        centre = (side * random.uniform(0.33, 0.42), random.uniform(0.45, 0.58))
        cloud = _blob(x, y, centre, (random.uniform(0.17, 0.22), random.uniform(0.13, 0.17)), softness=0.05)
        return np.asarray(0.40 * lung * cloud * (1 + 0.35 * _texture(random, size, 14)))
    hilar = np.exp(-(((np.abs(x) - 0.25) / 0.30) ** 2) - ((y - 0.48) / 0.22) ** 2)
    streaks = np.clip(_texture(random, size, 45), 0, None) + 0.6 * np.clip(_texture(random, size, 20), 0, None)
    return np.asarray(np.maximum(right, left) * hilar * (0.12 + 0.16 * streaks))


def _texture(random: np.random.Generator, size: tuple[int, int], cells: int) -> Plane:
    """Make smooth noise of unit variance with `cells` grains across."""
    grains = random.normal(0, 1, (max(2, cells * size[0] // size[1]), cells))
    fine = _enlarged(grains, size)
    return np.asarray(fine / fine.std())


def _enlarged(plane: Plane, size: tuple[int, int]) -> Plane:
    picture = Image.fromarray(plane.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float64)
