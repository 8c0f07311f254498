"""Films of research sites: pictures and NIfTI files of phantoms become the same training rows as any other film."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dicom_node import phantom, pixels
from dicom_node.core.errors import ConfigError, IntegrityError
from dicom_node.training.lists import FaultyList
from fl_agent import texts
from fl_agent.__main__ import app
from fl_agent.accounting import release_of
from fl_agent.calibration import Calibrated
from fl_agent.order import Learned, Order
from fl_agent.produce import _card
from fl_agent.research.dataset import open_data_set
from fl_agent.research.folder import read_folder
from fl_agent.research.pictures import grey
from fl_agent.trainset import read_image
from secure_infer.card import CLASSES, Figure, Preprocessing, TrunkCard
from tests.secure_infer.small_model import head

PICTURE = phantom.draw(3, "consolidation", (96, 120))
DATASET = """
name = "Phantoms of a department"
licence = "CC0"
model = "Phantom reader"
intended_use = "Tests."
limits = ["Phantoms are not people."]
[population]
min_age_years = 18
max_age_years = 99
"""


def as_nifti(path: Path, picture: np.ndarray, axes: str) -> None:
    """Store a displayed picture with an affine that says where its columns and rows lead."""
    if axes == "frontal":  # columns lead to the patient's left, rows to the feet
        stored, affine = picture.T[:, None, :], np.diag([-1.0, 1.0, -1.0, 1.0])
    elif axes == "turned":  # the same plane, stored from the right foot upwards
        stored, affine = picture.T[::-1, None, ::-1], np.eye(4)
    else:  # a plane of the first two axes
        stored, affine = picture.T[:, :, None], np.diag([-1.0, -1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)


@pytest.mark.parametrize("ending", [".png", ".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["frontal", "turned", "flat"])
def test_a_picture_is_read_as_it_is_shown_whatever_its_file(tmp_path: Path, ending: str, axes: str) -> None:
    path = tmp_path / f"x{ending}"
    if ending == ".png":
        Image.fromarray(PICTURE).save(path)
    else:
        as_nifti(path, PICTURE, axes)
    np.testing.assert_array_equal(grey(path), PICTURE)


def test_deeper_values_are_stretched_and_colours_made_grey(tmp_path: Path) -> None:
    deep = PICTURE.astype(np.uint16) * 16 + 7
    Image.fromarray(deep).save(tmp_path / "deep.png")
    as_nifti(tmp_path / "deep.nii.gz", deep.astype(np.float32), "frontal")
    low, high = int(PICTURE.min()), int(PICTURE.max())
    expected = np.rint((PICTURE.astype(float) - low) * 255 / (high - low))
    for name in ("deep.png", "deep.nii.gz"):
        np.testing.assert_allclose(grey(tmp_path / name), expected, atol=1)
    Image.fromarray(PICTURE).convert("RGB").save(tmp_path / "colour.png")
    np.testing.assert_array_equal(grey(tmp_path / "colour.png"), PICTURE)


def _volume(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)


def _numberless(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4), np.nan, np.float32), np.eye(4)), path)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cut.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n")),
        ("text.jpg", lambda path: path.write_bytes(b"no picture")),
        ("text.nii", lambda path: path.write_bytes(b"no picture")),
        ("text.nii.gz", lambda path: path.write_bytes(gzip.compress(b"no picture"))),
        ("cut.nii.gz", lambda path: path.write_bytes(gzip.compress(b"x" * 500)[:20])),
        ("volume.nii", _volume),
        ("nan.nii", _numberless),
    ],
)
def test_what_is_no_picture_is_named_as_such(tmp_path: Path, name: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / name)
    with pytest.raises(IntegrityError) as refused:
        grey(tmp_path / name)
    assert refused.value.code == "training-image"


def a_site(folder: Path, patients: int, *, split: bool = False) -> Path:
    """Two films of each patient, of grains that any network tells apart; every third is a NIfTI file."""
    rng = np.random.default_rng(1)
    lines = ["file,patient,split" if split else "file,patient"]
    for patient in range(patients):
        kind, grain = CLASSES[patient % 3], (4, 14, 56)[patient % 3]
        for film in range(2):
            coarse = Image.fromarray(rng.integers(0, 255, (224 // grain, 224 // grain)).astype(np.uint8))
            shown = np.asarray(coarse.resize((224, 224), Image.Resampling.BICUBIC))
            name = f"{kind}/below/{patient}-{film}" + (".nii.gz" if patient % 9 < 3 else ".png")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".png"):
                Image.fromarray(shown).save(folder / name)
            else:
                as_nifti(folder / name, shown, "frontal")
            lines.append(f"{name},Patient {patient}" + (f",{'test' if patient < 3 else 'train'}" if split else ""))
    (folder / "patients.csv").write_text("\n".join(lines))
    (folder / "dataset.toml").write_text(DATASET)
    return folder


def test_films_carry_class_patient_and_hash_and_nobody_is_in_both_parts(tmp_path: Path) -> None:
    folder = a_site(tmp_path, 15)
    found = read_folder(folder)
    assert (found.train.count, found.test.count, found.by_hand) == (12, 3, False)
    names = [{file.rpartition("/")[2].partition("-")[0] for file in part.files} for part in (found.train, found.test)]
    assert not names[0] & names[1]
    assert [CLASSES.index(file.partition("/")[0]) for file in found.train.files] == found.train.labels.tolist()
    assert np.bincount(found.train.patients).tolist() == [2] * 12
    for number, file in enumerate(found.train.files[:4]):
        expected = pixels.from_picture(grey(folder / file))
        np.testing.assert_array_equal(read_image(folder, found.train, number), expected)
    (folder / found.train.files[0]).write_bytes(b"other")
    with pytest.raises(IntegrityError, match="not the one"):
        read_image(folder, found.train, 0)


def test_a_list_may_say_who_is_for_the_test(tmp_path: Path) -> None:
    found = open_data_set(a_site(tmp_path, 6, split=True))
    assert (found.train.count, found.test.count) == (3, 3)
    assert found.how_split == "Test is who the site's list puts there."
    assert found.about.population.min_age_years == 18


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("normal/none.png,P,train", "no such picture"),
        ("../secret.png,P,train", "no such picture"),
        ("normal/below/0-0.nii.gz,Patient 0,test", "line 2 names the same file"),
        ("normal/below/extra.png,,train", "names no patient"),
        ("normal/below/extra.png,P,both", "split must be train or test"),
        ("normal/below/extra.png,Patient 0,train", "another class or split"),
        ("normal/below/extra.png,Patient 4,train", "another class or split"),
    ],
)
def test_a_fault_of_the_list_is_named_by_its_line_and_never_by_the_patient(
    tmp_path: Path, line: str, sentence: str
) -> None:
    folder = a_site(tmp_path, 6, split=True)
    Image.fromarray(PICTURE).save(folder / "normal" / "below" / "extra.png")
    with (folder / "patients.csv").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(FaultyList, match=sentence) as refused:
        read_folder(folder)
    assert [fault.line for fault in refused.value.faults] == [14]
    assert "Patient" not in str(refused.value)


def test_a_picture_that_the_list_forgets_is_not_left_out_silently(tmp_path: Path) -> None:
    folder = a_site(tmp_path, 6)
    Image.fromarray(PICTURE).save(folder / "viral" / "forgotten.png")
    with pytest.raises(ConfigError, match="leaves out 1 of the pictures"):
        read_folder(folder)


def test_the_card_of_a_research_sites_model_claims_nobody_elses_data(tmp_path: Path) -> None:
    data = open_data_set(a_site(tmp_path, 6, split=True))
    order = Order(tmp_path, tmp_path, "0.1", 3.0, 1e-2, 1)
    weights = {"head.weight": np.zeros((3, 4, 1, 1)), "head.bias": np.zeros(3)}
    learned = Learned(
        head(4, 3), weights, lambda films, what: np.zeros((len(films.files), 3)), None,
        (release_of("mean feature", "training patients", 3, 8.0),),
        Preprocessing(side=224, resampling="bicubic, antialiased", offset=0, divisor=255, normalisation="none"),
        TrunkCard(name="efficientnet-lite0", sha256="0" * 64, taps=("head",), source="x"),
        texts.NOT_COVERED, texts.HEAD_LIMITS,
    )  # fmt: skip
    calibrated = Calibrated(1.0, (0.0, 0.0, 0.0), 0.1, ())
    figure = Figure(name="specificity_at_half", value=0.25, low=0.1, high=0.4, images=6, patients=3)
    card = _card(order, data, learned, calibrated, {"train": data.train, "test": data.test}, (figure,), "0" * 64)
    assert (card.name, card.data.name, card.data.licence) == ("Phantom reader", "Phantoms of a department", "CC0")
    assert card.limits[0].startswith("Sensitive before specific: 75%")
    assert "Phantoms are not people." in card.limits
    assert card.population.min_age_years == 18
    for borrowed in ("Kermany", "Guangzhou", "children", "50 candidates"):
        assert borrowed not in card.canonical().decode()


def test_the_command_reads_a_research_site(tmp_path: Path) -> None:
    a_site(tmp_path / "films", 15)
    arguments = ["train", "--version", "0.1", "--data", str(tmp_path / "films"), "--out", str(tmp_path / "models")]
    arguments += ["--signing-key", str(tmp_path / "key.pem")]
    result = CliRunner().invoke(app, [*arguments, "--cut", "block9"])
    assert "no-cut" in result.output  # asked for after the films were read, before anything is computed
    (tmp_path / "films" / "patients.csv").write_text("file,patient\nnormal/none.png,P\n")
    assert "faulty-list" in CliRunner().invoke(app, arguments).output
