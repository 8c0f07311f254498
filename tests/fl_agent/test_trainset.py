"""Patients stay whole, splits repeat, and cached features belong to the images that the manifest names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.core.errors import ConfigError, IntegrityError
from dicom_node.pixels import from_picture
from fl_agent.trainset import VIEWS, pooled_features, read_manifest, split_patients
from secure_infer.network import Trunk
from tests.fl_agent.small_dataset import picture, write


def nothing(done: int, total: int) -> None:
    assert done <= total


def test_duplicates_are_dropped_and_patients_counted(tmp_path: Path) -> None:
    write(tmp_path, train=12, test=6)
    films = read_manifest(tmp_path, "train")
    assert films.sizes() == ((8, 8, 8), (4, 4, 4))
    assert films.count == 12
    assert not any("duplicate" in name for name in films.files)


def test_a_folder_without_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not hold kermany224"):
        read_manifest(tmp_path, "train")


def test_a_split_keeps_patients_whole_takes_each_class_and_repeats(pneumonia_data: Path) -> None:
    films = read_manifest(pneumonia_data / "kermany224", "train")
    rest, aside = split_patients(films, 0.15, 7)
    again = split_patients(films, 0.15, 7)
    other = split_patients(films, 0.15, 8)
    assert aside.files == again[1].files != other[1].files
    assert len(rest.files) + len(aside.files) == len(films.files)
    number = dict(zip(films.files, films.patients.tolist(), strict=True))
    assert {number[name] for name in rest.files} & {number[name] for name in aside.files} == set()
    for kept, whole in zip(aside.sizes()[1], films.sizes()[1], strict=True):
        assert kept == round(0.15 * whole)
    assert len({number[name] for name in aside.files}) == aside.count


def test_no_patient_is_in_both_the_training_and_the_test_split(pneumonia_data: Path) -> None:
    rows = (pneumonia_data / "kermany224" / "manifest.csv").read_text().splitlines()[1:]
    sides = {split: {row.split(",")[4] for row in rows if row.split(",")[1] == split} for split in ("train", "test")}
    assert sides["train"]
    assert not sides["train"] & sides["test"]


def test_features_are_those_of_each_view_and_come_from_the_cache_the_second_time(tmp_path: Path) -> None:
    write(tmp_path / "data", train=3, test=3)
    films, trunk = read_manifest(tmp_path / "data", "train"), Trunk(("block13",))
    found = pooled_features(tmp_path / "data", films, trunk, tmp_path / "cache", nothing, VIEWS)
    assert found.shape == (len(films.files), 2, 192)
    seen = from_picture(picture(tmp_path / "data" / films.files[2]))
    np.testing.assert_allclose(found[2, 0], trunk.features(seen).mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(found[2, 1], trunk.features(seen[:, ::-1]).mean((1, 2)), atol=1e-6)
    for name in films.files:
        (tmp_path / "data" / name).unlink()
    again = pooled_features(tmp_path / "data", films, trunk, tmp_path / "cache", nothing, VIEWS)
    np.testing.assert_array_equal(again, found)


def test_an_image_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, train=3, test=3)
    films = read_manifest(tmp_path, "train")
    (tmp_path / films.files[1]).write_bytes((tmp_path / films.files[0]).read_bytes())
    with pytest.raises(IntegrityError, match="not the one"):
        pooled_features(tmp_path, films, Trunk(("block13",)), tmp_path / "cache", nothing, VIEWS)
