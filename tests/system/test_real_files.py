"""Real radiographs and odd files by C-STORE: an answer, or a recorded refusal that a person understands."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import ImplicitVRLittleEndian

from dicom_node import scu
from dicom_node.core.database import Database, instance, rejection, study
from dicom_node.demo import watch
from dicom_node.demo.stack import Stack

#: What each real file must come to: "answer", or the code of its refusal.
CHEST = {
    "cr_chest_mono1_10bit_no_preamble_implicit_raw": "answer",
    "cr_chest_mono2_8bit_jpeg_baseline_rsna.dcm": "answer",
    "cr_chest_mono1tag_8bit_jpeg_baseline_rsna.dcm": "answer",  # other bytes under the same UIDs: replaces the first
    "dx_chest_mono1_12bit_j2k_lossless_966.dcm": "broken-pixel-data",
    "dx_chest_mono1_12bit_j2k_lossless_966_fixed.dcm": "answer",
    "dx_chest_nih_google_implicit.dcm": "body-part-missing",
    "dx_thorax_mono1_8bit_explicit_small.dcm": "non-human",
    "cr_teeth_mono1_modalitylutseq_jpegll.dcm": "uid-mismatch",  # of meta information and data set; see below
    "ot_testpattern_voilutseq.dcm": "modality",
    "ot_testpattern_modalitylutseq.dcm": "modality",
    "ot_voi_and_modality_lut_jpegll16.dcm": "not sent",  # it has no SOP Instance UID, so no sender can announce it
    "notchest/cr_hip_RG2_JPLY_fixed.dcm": "body-part",
    "notchest/ct_small.dcm": "sop-class",
    "notchest/mr_small.dcm": "sop-class",
}


@dataclass
class Node:
    """The running product and its records."""

    stack: Stack
    database: Database
    folder: Path

    def send(self, path: Path) -> scu.Outcome:
        stack = self.stack
        peer = {"host": "127.0.0.1", "port": stack.scp_port, "called": stack.ae_title}
        (outcome,) = scu.send([path], **peer, calling=stack.sender_ae)
        return outcome

    def last_rejection(self) -> str:
        with self.database.read() as connection:
            newest = sa.select(rejection).order_by(rejection.c.id.desc()).limit(1)
            row = connection.execute(newest).one()
        assert len(row.message) > 20
        return row.code


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("real")
    with Stack(folder, quiet_s=0.2, enforce_age=False) as stack:
        stack.start()
        database = Database(stack.settings.database_url)
        yield Node(stack, database, folder)
        database.close()


def part10(path: Path, folder: Path) -> Path:
    """The file itself, or, where it has no meta information, a file that has."""
    with path.open("rb") as stream:
        stream.seek(128)
        if stream.read(4) == b"DICM":
            return path
    dataset = pydicom.dcmread(path, force=True)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    with_meta = folder / f"{path.name}.dcm"
    dataset.save_as(with_meta, enforce_file_format=True)
    return with_meta


@pytest.mark.parametrize("name", CHEST)
def test_a_real_file_gets_its_answer_or_its_reason(name: str, node: Node, pneumonia_data: Path) -> None:
    path = part10(pneumonia_data / "dicom_chest" / name, node.folder)
    outcome = node.send(path)
    expected = CHEST[name]
    if expected == "not sent":
        assert (outcome.status, outcome.ok) == (None, False)
        assert "meta information" in outcome.meaning
        return
    assert outcome.status is not None
    if not outcome.ok:
        assert node.last_rejection() == expected
        return
    uid = str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    ((_, seen),) = watch.follow(node.stack.settings.database_url, [uid], 60.0)
    if expected == "answer":
        assert seen.newest.state == "done"
        assert seen.newest.result["answer"] in ("present", "absent", "undetermined")
        assert len({report["sop_instance_uid"] for report in seen.newest.result["reports"]}) == 2
    else:
        assert (seen.newest.state, seen.newest.code) == ("refused", expected)
        assert all(len(reason) > 20 for reason in seen.refusals)
        assert seen.refusals


def test_the_teeth_are_told_from_a_chest_once_their_uid_is_a_valid_one(node: Node, pneumonia_data: Path) -> None:
    path = node.folder / "teeth.dcm"
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        dataset = pydicom.dcmread(pneumonia_data / "dicom_chest" / "cr_teeth_mono1_modalitylutseq_jpegll.dcm")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.save_as(path)
    assert node.send(path).ok
    ((_, seen),) = watch.follow(node.stack.settings.database_url, [str(dataset.StudyInstanceUID)], 60.0)
    assert (seen.newest.state, seen.newest.code) == ("refused", "body-part")


def test_every_odd_file_gets_a_legal_status_and_the_node_stays_up(node: Node, pneumonia_data: Path) -> None:
    with (pneumonia_data / "dicom_odd" / "manifest.csv").open() as stream:
        files = [pneumonia_data / "dicom_odd" / row["file"] for row in csv.DictReader(stream)]
    sent, studies = 0, set()
    for path in files:
        outcome = node.send(path)
        if outcome.status is None:  # a file that no sender can announce: no SOP class, no meta information
            assert not outcome.ok
            continue
        sent += 1
        legal = {0x0000, 0x0117, 0x0122, 0xA900, 0xC000}
        assert outcome.status in legal, f"{path.name}: {outcome.status_text}"
        if not outcome.ok:
            node.last_rejection()
    with node.database.read() as connection:
        studies = set(connection.execute(sa.select(study.c.study_instance_uid)).scalars())
    for _, seen in watch.follow(node.stack.settings.database_url, studies, 120.0):
        assert seen.newest.state in ("done", "refused")
    with node.database.read() as connection:
        judged = connection.execute(sa.select(instance.c.refusal)).scalars().all()
    assert sent > 40
    assert len(judged) >= len(studies)
    assert node.stack.alive
