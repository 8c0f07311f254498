"""A network learns where the phantoms' opacities are, under the same privacy as any other, and is published signed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from dicom_node import phantom
from dicom_node.core.errors import ConfigError, IntegrityError
from fl_agent.__main__ import app
from fl_agent.randomness import SecureSource
from fl_agent.segmentation import card as cards
from fl_agent.segmentation.examples import Pairs, phantoms, read_pairs
from fl_agent.segmentation.network import build, dice, inputs_of, iou, pixels, segment, segmentation_loss
from fl_agent.segmentation.produce import train
from fl_agent.train import Recipe
from secure_infer.clear import evaluate
from secure_infer.models import ModelStore, public_hex, signing_key

SIDE = 64
FULL = Recipe(steps=90, sampling_rate=1.0, clip=1.0, learning_rate=1.0, momentum=0.9, averaged=0.1)


@pytest.fixture(scope="module")
def drawn() -> tuple[Pairs, Pairs]:
    return phantoms(60, SIDE).divided(0.25, 1)


def test_a_phantom_shows_its_opacity_where_its_mask_says() -> None:
    picture, mask = phantom.draw_with_opacity(3, "consolidation", (SIDE, SIDE))
    assert np.array_equal(picture, phantom.draw(3, "consolidation", (SIDE, SIDE)))
    assert 0.01 < mask.mean() < 0.2
    assert not phantom.draw_with_opacity(3, "clear", (SIDE, SIDE))[1].any()
    both = {kind: phantom.draw_with_opacity(3, kind, (SIDE, SIDE)) for kind in phantom.KINDS}
    assert both["consolidation"][0][mask].mean() > both["clear"][0][mask].mean() + 10


def test_without_noise_it_learns_where_opacities_are(drawn: tuple[Pairs, Pairs]) -> None:
    torch.manual_seed(0)
    training, test = drawn
    network = build((8, 16, 16, 16))
    before = dice(segment(network, test.pictures), test.masks).mean()
    train(network, training, FULL, 1e-9, SecureSource())
    found = segment(network, test.pictures)
    ill = test.masks.any((1, 2))
    assert dice(found, test.masks)[ill].mean() > max(0.5, before + 0.2)
    assert (iou(found, test.masks) <= dice(found, test.masks)).all()


def test_a_patient_with_many_pictures_moves_the_network_by_one_clip(drawn: tuple[Pairs, Pairs]) -> None:
    pairs = drawn[0]
    one = Pairs("", pairs.pictures[:6], pairs.masks[:6], np.zeros(6, dtype=np.int64))
    torch.manual_seed(0)
    network = build((8, 16, 16, 16))
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    train(network, one, Recipe(1, 1.0, 0.01, 20.0, 0.0, 1.0), 1e-9, SecureSource())
    moved = nn.utils.parameters_to_vector(network.parameters()).detach() - before
    assert moved.norm().item() == pytest.approx(0.01 * 20.0, rel=1e-3)


def test_the_noise_is_in_what_is_learned(drawn: tuple[Pairs, Pairs]) -> None:
    torch.manual_seed(0)
    start = build((8, 16, 16, 16)).state_dict()
    found = []
    for noise in (1e-9, 1e-9, 1.0):
        network = build((8, 16, 16, 16))
        network.load_state_dict(start)
        train(network, drawn[1], Recipe(1, 1.0, 1.0, 1.0, 0.0, 1.0), noise, SecureSource())
        found.append(nn.utils.parameters_to_vector(network.parameters()).detach() * drawn[1].count)
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert (found[2] - found[0]).std().item() == pytest.approx(1.0, rel=0.1)  # of the sum, in units of the clip


def test_a_network_that_mixes_patients_is_refused(drawn: tuple[Pairs, Pairs]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 64, 3, stride=8, padding=1), nn.BatchNorm2d(64))
    with pytest.raises(ConfigError) as error:
        train(network, drawn[0], FULL, 1.0, SecureSource())
    assert error.value.code == "mixes-patients"


def test_the_loss_of_several_images_is_the_sum_of_each_alone() -> None:
    torch.manual_seed(0)
    grid, masks = torch.randn(3, 64, 4, 4), torch.randint(0, 2, (3, 32, 32), dtype=torch.uint8)
    weights = torch.tensor([0.5, 0.5, 1.0])
    alone = sum(
        segmentation_loss(grid[one : one + 1], masks[one : one + 1], weights[one : one + 1]) for one in range(3)
    )
    assert segmentation_loss(grid, masks, weights).item() == pytest.approx(float(alone))


def test_dice_and_iou_are_those_of_the_definitions() -> None:
    truth, found = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    truth[0, :2], found[0, 1:3] = True, True  # 8 and 8 pixels, 4 in both
    truth[1, 0] = True
    assert dice(found, truth).tolist() == [0.5, 0.0, 1.0]
    assert iou(found, truth).tolist() == [pytest.approx(1 / 3), 0.0, 1.0]


def test_one_command_trains_privately_and_publishes_what_compiles(tmp_path: Path) -> None:
    command = [
        "train-segmentation", "--out", str(tmp_path / "models"), "--version", "1.0", "--phantoms", "40",
        "--side", str(SIDE), "--steps", "3", "--delta", "0.01", "--epsilon", "4",
        "--signing-key", str(tmp_path / "key.pem"), "--json", str(tmp_path / "figures.json"),
    ]  # fmt: skip
    called = CliRunner().invoke(app, command, catch_exceptions=False)
    assert called.exit_code == 0, called.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 3 < figures["epsilon"] <= 4
    assert 0 <= figures["iou"]["value"] <= figures["dice"]["value"] <= 1
    key = public_hex(signing_key(tmp_path / "key.pem"))
    folder = tmp_path / "models" / "1.0"
    card, weights = cards.read(folder, key)
    (mechanism,) = card.privacy.mechanisms
    assert (mechanism.patients, mechanism.steps) == (32, 3)
    # The published layers are the network: the same pixels, by the graph that the parties would evaluate.
    picture = phantoms(1, SIDE, seed=5).pictures
    image = inputs_of(torch.from_numpy(picture)).double().numpy()[0]
    grid = evaluate(card.program, weights, image)[card.program.output]
    network = build()
    convolutions = [one for one in network if isinstance(one, nn.Conv2d)]
    names = [one.name for one in card.program.layers if one.kind == "convolution"]
    for layer, name in zip(convolutions, names, strict=True):
        layer.load_state_dict(
            {part: torch.from_numpy(weights[f"{name}.{part}"]).float() for part in ("weight", "bias")}
        )
    with torch.no_grad():
        expected = pixels(network(torch.from_numpy(image)[None].float()))
    torch.testing.assert_close(pixels(grid).float(), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(IntegrityError):  # nobody takes it for a classifier
        ModelStore(tmp_path / "models", [key]).verify("1.0")
    (folder / "card.json").write_bytes((folder / "card.json").read_bytes().replace(b'"steps": 3', b'"steps": 2'))
    with pytest.raises(IntegrityError):
        cards.read(folder, key)
    with pytest.raises(ConfigError, match="two patients"):
        CliRunner().invoke(app, [*command, "--mixup", "0.4"], catch_exceptions=False)


def test_a_folder_of_pictures_and_masks_is_read_by_patient(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    lines = ["file,patient"]
    for number in range(4):
        picture, mask = phantom.draw_with_opacity(number, "consolidation", (SIDE, SIDE))
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{number}.png")
        lines.append(f"{number}.png,p{number // 2}")
    (tmp_path / "patients.csv").write_text("\n".join(lines) + "\n")
    found = read_pairs(tmp_path, SIDE)
    assert found.patients.tolist() == [0, 0, 1, 1]
    assert np.array_equal(found.masks[2], phantom.draw_with_opacity(2, "consolidation", (SIDE, SIDE))[1])
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(ConfigError):
        read_pairs(tmp_path, SIDE)
