"""The trunks are EfficientNet-Lite0 and Lite1 to the digit, and what they give is linear in what a head needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dicom_node.core.errors import ConfigError, IntegrityError
from secure_infer import network
from secure_infer.network import Trunk
from secure_infer.trunks import LITE0, LITE1, TrunkSpec

TAPS = ("block10", "block13", "head")


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return Trunk(TAPS)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A picture with edges, ramps and noise that uses the whole grey range."""
    rows, columns = np.mgrid[0:224, 0:224] / 223.0
    shape = ((rows - 0.5) ** 2 + (columns - 0.4) ** 2 < 0.1) * 0.4
    noise = np.random.default_rng(4).uniform(0, 0.2, (224, 224))
    return np.clip(0.5 * rows + shape + noise, 0, 1).astype(np.float32)


def convolve(
    x: Tensor, weights: dict[str, Tensor], name: str, norm: str, stride: int = 1, *, depthwise: bool
) -> Tensor:
    """A convolution with TensorFlow's SAME padding and its BatchNorm, as in the papers: nothing folded."""
    weight = weights[f"{name}.weight"].double()
    sides = []
    for size in (x.shape[3], x.shape[2]):
        missing = max((-(-size // stride) - 1) * stride + weight.shape[2] - size, 0)
        sides += [missing // 2, missing - missing // 2]
    x = functional.conv2d(functional.pad(x, sides), weight, stride=stride, groups=weight.shape[0] if depthwise else 1)
    mean, variance, gamma, beta = (
        weights[f"{norm}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)


def unfolded(image: np.ndarray, spec: TrunkSpec = LITE0) -> dict[str, Tensor]:
    """The same network with three colour channels, BatchNorm and float64."""
    weights = spec.checkpoint()
    x = torch.from_numpy(image.astype(np.float64))[None, None].expand(1, 3, 224, 224) * 255
    x = functional.relu6(convolve((x - 127) / 128, weights, "_conv_stem", "_bn0", 2, depthwise=False))
    kept = {"stem": x}
    for number, stage in enumerate(spec.stages[1:-1]):
        prefix, y = f"_blocks.{number}.", x
        if stage.expansion > 1:
            y = functional.relu6(convolve(y, weights, f"{prefix}_expand_conv", f"{prefix}_bn0", depthwise=False))
        y = convolve(y, weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stage.stride, depthwise=True)
        y = convolve(functional.relu6(y), weights, f"{prefix}_project_conv", f"{prefix}_bn2", depthwise=False)
        x = x + y if x.shape == y.shape else y
        kept[stage.name] = x
    kept["head"] = functional.relu6(convolve(x, weights, "_conv_head", "_bn1", depthwise=False))
    return kept


@pytest.mark.parametrize("trunk_spec", [LITE0, LITE1], ids=lambda one: one.name)
def test_folded_stages_equal_the_network_with_batch_norm(image: np.ndarray, trunk_spec: TrunkSpec) -> None:
    expected = unfolded(image, trunk_spec)
    every = Trunk(trunk_spec.names, name=trunk_spec.name)
    with torch.inference_mode():
        found = every.run((torch.from_numpy(image)[None, None] * 255 - 127) / 128)
    for spec in trunk_spec.stages:
        assert found[spec.name].shape == (1, spec.channels_out, spec.side, spec.side)
        scale = float(expected[spec.name].abs().max())
        torch.testing.assert_close(found[spec.name].double() / scale, expected[spec.name] / scale, atol=1e-5, rtol=0)


def test_features_are_pooled_to_the_grid_and_scaled_to_unit_length(trunk: Trunk, image: np.ndarray) -> None:
    expected, blocks = unfolded(image), []
    for tap in TAPS:
        grid = expected[tap][0].numpy()
        step = grid.shape[1] // 7
        cells = grid.reshape(len(grid), 7, step, 7, step).mean((2, 4))
        blocks.append(cells / np.linalg.norm(cells.mean((1, 2))) / np.sqrt(3))
    found = trunk.features(image)
    assert found.dtype == np.float64
    assert found.shape == (trunk.channels, 7, 7)
    np.testing.assert_allclose(found, np.concatenate(blocks), atol=2e-5)
    assert np.linalg.norm(found.mean((1, 2))) == pytest.approx(1.0, abs=1e-5)


def test_each_quarter_has_channels_of_its_own_that_see_nothing_of_the_others(image: np.ndarray) -> None:
    whole, parted = Trunk(("block7", "block13")), Trunk(("block7", "block13"), regions=2)
    assert parted.channels == 4 * whole.channels == 4 * (80 + 192)
    assert parted.identity != whole.identity
    plain, found = whole.features(image), parted.features(image)
    assert np.linalg.norm(found.mean((1, 2))) == pytest.approx(1.0, abs=1e-5)
    start = 0
    for width in (80, 192):
        grid, seen = plain[start : start + width], found[4 * start : 4 * (start + width)].reshape(4, width, 7, 7)
        start += width
        # Whatever is seen by any quarter is the whole image again, up to the length of all four together.
        ratio = seen.mean(0) / np.where(grid == 0, 1, grid)
        np.testing.assert_allclose(ratio[grid != 0], np.median(ratio[grid != 0]), rtol=1e-4)
        for quarter, (row, column) in enumerate(itertools.product((slice(0, 3), slice(4, 7)), repeat=2)):
            assert np.abs(seen[quarter][:, row, column]).max() > 0
            others = np.ones((7, 7), dtype=bool)
            others[row, column] = others[3, :] = others[:, 3] = False
            assert np.abs(seen[quarter][:, others]).max() == 0
        # A quarter's mean is that of its 3.5 x 3.5 positions: the middle row and column are shared.
        shares = np.array([1, 1, 1, 0.5, 0, 0, 0])
        top_left = (grid * shares[:, None] * shares).sum((1, 2)) / shares.sum() ** 2
        np.testing.assert_allclose(seen[0].mean((1, 2)), top_left * np.median(ratio[grid != 0]), atol=1e-6)


def test_an_enlarged_image_enters_the_same_stages(image: np.ndarray) -> None:
    small, large = Trunk(("block13",)), Trunk(("block13",), side=288)
    assert large.channels == small.channels
    assert large.identity != small.identity
    # Where nothing but a slow ramp is shown, enlarging changes no pixel by more than a step of grey.
    ramp = np.tile(np.linspace(0.2, 0.8, 224, dtype=np.float32), (224, 1))
    assert float(network.greys(ramp[None], 288).max()) == pytest.approx(0.8 * 255, abs=1)
    assert network.greys(ramp[None], 288).shape == (1, 1, 288, 288)
    kept = large.run((network.greys(image[None], 288) - 127) / 128)["block13"]
    assert kept.shape == (1, 192, 9, 9)
    grid = functional.adaptive_avg_pool2d(kept, 7)[0].numpy()
    np.testing.assert_allclose(large.features(image), grid / np.linalg.norm(grid.mean((1, 2))), atol=2e-5)


def test_a_change_in_one_quarter_moves_the_others_by_nothing_but_their_length() -> None:
    trunk, rng = Trunk(("stem",), regions=2), np.random.default_rng(1)
    before = rng.uniform(0, 1, (224, 224)).astype(np.float32)
    after = before.copy()
    after[:96, :96] = rng.uniform(0, 0.5, (96, 96))
    first, second = (trunk.features(one).reshape(4, -1, 7, 7)[3] for one in (before, after))
    # Of two pictures' vectors for the lower right quarter, one is a multiple of the other.
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    assert cosine == pytest.approx(1.0, abs=1e-6)


def test_a_batch_gives_what_its_images_give(trunk: Trunk, image: np.ndarray) -> None:
    both = trunk.features_of(np.stack([image, image[:, ::-1]])).numpy()
    np.testing.assert_allclose(both[0], trunk.features(image), atol=1e-5)
    np.testing.assert_allclose(both[1], trunk.features(image[:, ::-1]), atol=1e-5)


def test_the_suffix_after_any_cut_gives_the_same_output(trunk: Trunk, image: np.ndarray) -> None:
    x = (torch.from_numpy(image)[None, None] * 255 - 127) / 128
    with torch.inference_mode():
        whole = trunk.run(x)["head"]
        for before, after in itertools.pairwise(LITE0.stages):
            cut = trunk.run(x, last=before.name)[before.name]
            torch.testing.assert_close(trunk.run(cut, first=after.name)["head"], whole)


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_an_even_image_stays_finite_and_within_the_bound(trunk: Trunk, grey: float) -> None:
    for one in (trunk, Trunk(TAPS, regions=2)):
        found = one.features(np.full((224, 224), grey, dtype=np.float32))
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= network.FEATURE_BOUND


def test_another_checkpoint_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("an unverified file reached the parser")

    monkeypatch.setattr(torch, "load", parsed)
    with pytest.raises(IntegrityError, match="SHA-256"):
        Trunk(TAPS, sha256="0" * 64)


@pytest.mark.parametrize("taps", [(), ("block16",), ("head", "tail")])
def test_an_unknown_stage_is_refused(taps: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="no stage"):
        Trunk(taps)


def test_an_image_of_another_size_is_refused(trunk: Trunk) -> None:
    with pytest.raises(ValueError, match="224 x 224"):
        trunk.features(np.zeros((224, 223), dtype=np.float32))
