"""The SCP against real peers, DCMTK's and pynetdicom's, and its promise to the sender."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import (
    AllTransferSyntaxes,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind

from dicom_node import part10
from dicom_node.core.database import Database, instance, rejection
from dicom_node.core.errors import RejectedInstance
from dicom_node.scp import Scp
from dicom_node.store import Store
from tests import raw_peer, scp_process
from tests.raw_peer import ACCEPTED, DX, EXPLICIT, RELEASE_RP, VERIFICATION, RawPeer, encode, image

#: C-STORE statuses that this node may answer with (PS3.4 Table B.2-1, PS3.7 Annex C).
LEGAL = {0x0000, 0x0117, 0x0122, 0xA700, 0xA900, 0xC000}
#: pydicom and pynetdicom warn of every UID that is none; the node still has to answer it.
ODD_UIDS = pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The UID")


class Node:
    """A running SCP with its store and records."""

    def __init__(self, state_dir: Path, **settings: object) -> None:
        self.state_dir = state_dir
        configured = scp_process.site(state_dir, **settings)
        self.database = Database(configured.database_url)
        self.database.migrate()
        self.store = Store(configured, self.database)
        self.scp = Scp(configured, self.store)
        self.scp.start()

    @property
    def port(self) -> int:
        return self.scp.port

    def rows(self, table: sa.Table) -> list[sa.Row]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(table).order_by(table.primary_key.columns[0])).all())

    def temporary_files(self) -> list[Path]:
        return list((self.state_dir / "tmp").iterdir())

    def stop(self) -> None:
        self.scp.stop()
        self.database.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def starter(**settings: object) -> Node:
        nodes.append(Node(tmp_path, **settings))
        return nodes[-1]

    yield starter
    for node in nodes:
        node.stop()


@pytest.fixture
def node(start: Callable[..., Node]) -> Node:
    return start()


def dcmtk(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(arguments[0]) is None:
        pytest.skip("DCMTK is not installed (Debian package dcmtk)")
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def test_echoscu_is_answered(node: Node) -> None:
    done = dcmtk("echoscu", "-v", "-aet", "STORESCU", "-aec", "VEILRAY", "127.0.0.1", str(node.port))
    assert "Received Echo Response (Success)" in done.stderr + done.stdout


def test_storescu_sends_twice_and_one_instance_is_kept(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(raw_peer.part10(image("one")[0]))
    for _ in range(2):
        done = dcmtk("storescu", "-v", "-R", "-aec", "VEILRAY", "127.0.0.1", str(node.port), str(path))
        assert done.returncode == 0, done.stderr
    (row,) = node.rows(instance)
    assert re.fullmatch(r"STORESCU@127\.0\.0\.1", row.source)
    assert node.store.dataset(row.sha256).PatientID == "4711"


def test_pynetdicom_negotiates_every_image_class_in_every_transfer_syntax(node: Node) -> None:
    classes = (DX, DigitalXRayImageStorageForProcessing, ComputedRadiographyImageStorage, SecondaryCaptureImageStorage)
    entity = AE(ae_title="STORESCU")
    for sop_class in classes:
        for syntaxes in (AllTransferSyntaxes[:4], *([syntax] for syntax in AllTransferSyntaxes[4:20])):
            entity.add_requested_context(sop_class, list(syntaxes))
    association = entity.associate("127.0.0.1", node.port, ae_title="VEILRAY")
    assert association.is_established
    assert len(association.accepted_contexts) == 68
    assert association.send_c_store(_with_syntax(image("one")[0])).Status == 0
    association.release()
    assert association.is_released


def _with_syntax(dataset: pydicom.Dataset) -> pydicom.Dataset:
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    return dataset


@pytest.mark.parametrize(
    ("syntax", "implicit", "little"),
    [(ImplicitVRLittleEndian, True, True), (EXPLICIT, False, True), (ExplicitVRBigEndian, False, False)],
)
def test_each_plain_encoding_is_kept_as_it_came(node: Node, syntax: str, implicit: bool, little: bool) -> None:
    dataset, uid = image("one")
    with RawPeer(node.port) as peer:
        assert peer.associate([(DX, [syntax])]) == ACCEPTED
        assert peer.store(encode(dataset, implicit=implicit, little=little), uid) == 0
    (row,) = node.rows(instance)
    kept = node.store.dataset(row.sha256)
    assert (kept.file_meta.TransferSyntaxUID, kept.PatientName, kept.Rows) == (syntax, "Doe^Jo", 16)


def test_a_deflated_data_set_is_kept_and_a_bomb_costs_little(node: Node) -> None:
    import zlib

    def deflate(content: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return packer.compress(content) + packer.flush()

    dataset, uid = image("one")
    with RawPeer(node.port) as peer:
        assert peer.associate([(DX, [DeflatedExplicitVRLittleEndian])]) == ACCEPTED
        assert peer.store(deflate(encode(dataset)), uid) == 0
        before_header = b"\x08\x00\x05\x00UT\0\0\0\0\0\x10" + b"\0" * (1 << 26)
        assert peer.store(deflate(before_header), "1.2.3") == 0xC000
        assert peer.store(b"not deflated at all", "1.2.4") == 0xC000
    assert len(node.rows(instance)) == 1


@pytest.mark.parametrize("sop_class", [str(CTImageStorage), "1.2.840.10008.5.1.4.1.1.88.33", "1.2.3.4.5.6.7"])
def test_a_class_that_is_not_taken_gets_a_status_and_a_recorded_reason(node: Node, sop_class: str) -> None:
    dataset, uid = image("one", sop_class=sop_class)
    with RawPeer(node.port) as peer:
        assert peer.associate([(sop_class, [EXPLICIT]), (DX, [EXPLICIT])]) == ACCEPTED
        assert peer.store(encode(dataset), uid, sop_class) == 0x0122
        assert peer.store(encode(image("two")[0]), image("two")[1], context_id=3) == 0
        assert peer.release() == RELEASE_RP
    (row,) = node.rows(rejection)
    assert (row.status, row.code, row.sop_class_uid) == (0x0122, "sop-class", sop_class)
    assert row.message.startswith("the node takes CR, DX and SC images alone, not ")
    assert len(node.rows(instance)) == 1


def test_query_retrieve_is_not_offered(node: Node) -> None:
    entity = AE(ae_title="STORESCU")
    entity.add_requested_context(PatientRootQueryRetrieveInformationModelFind)
    entity.add_requested_context(VERIFICATION)
    association = entity.associate("127.0.0.1", node.port, ae_title="VEILRAY")
    assert [context.abstract_syntax for context in association.accepted_contexts] == [VERIFICATION]
    association.release()


@ODD_UIDS
def test_the_announced_uids_must_be_those_of_the_data_set(node: Node) -> None:
    dataset, uid = image("one")
    with RawPeer(node.port) as peer:
        peer.associate([(DX, [EXPLICIT]), (str(ComputedRadiographyImageStorage), [EXPLICIT])])
        assert peer.store(encode(dataset), "1.2.3") == 0xA900
        assert peer.store(encode(dataset), uid, str(ComputedRadiographyImageStorage), context_id=3) == 0xA900
        assert peer.store(encode(dataset), uid, str(ComputedRadiographyImageStorage), context_id=1) == 0x0122
        assert peer.store(encode(dataset), "not a uid") == 0x0117
        assert peer.store(b"\x08\x00", uid) == 0xC000
        assert peer.store(encode(dataset), uid) == 0
    assert [row.status for row in node.rows(rejection)] == [0xA900, 0xA900, 0x0122, 0x0117, 0xC000]
    assert node.temporary_files() == []


def test_an_operation_that_is_not_offered_gets_its_status(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send_command(raw_peer.command(0x0020, DX))
        assert peer.status() == 0x0211
        peer.send_command(raw_peer.command(0x0020, DX, data_set=True))
        peer.socket.sendall(raw_peer.pdv(b"\0" * 10, command=False, last=True))
        assert peer.status() == 0x0211


def test_echo_is_answered_under_any_context(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.echo() == 0


def test_a_plain_transfer_syntax_is_chosen_where_one_is_proposed(node: Node) -> None:
    entity = AE(ae_title="STORESCU")
    entity.add_requested_context(DX, [JPEGLSLossless])
    entity.add_requested_context(DX, ["1.2.3.4", JPEGLSLossless, EXPLICIT])
    entity.add_requested_context(DX, ["1.2.3.4"])
    association = entity.associate("127.0.0.1", node.port, ae_title="VEILRAY")
    chosen = [context.transfer_syntax[0] for context in association.accepted_contexts]
    association.release()
    assert chosen == [JPEGLSLossless, EXPLICIT, "1.2.3.4"]


def test_a_store_without_a_data_set_is_answered(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send_command(raw_peer.command(1, DX, "1.2.3"))
        assert peer.status() == 0xC000


def test_a_study_is_open_while_an_association_carries_it(node: Node) -> None:
    dataset, uid = image("one", side=300)
    encoded = encode(dataset)
    with RawPeer(node.port) as peer:
        peer.associate()
        assert node.scp.open_studies() == set()
        peer.send_command(raw_peer.command(1, DX, uid, data_set=True))
        peer.socket.sendall(raw_peer.pdv(encoded[:100_000], command=False, last=False))
        _until(lambda: node.scp.open_studies() == {dataset.StudyInstanceUID})
        peer.socket.sendall(raw_peer.pdv(encoded[100_000:], command=False, last=True))
        assert peer.status() == 0
        assert node.scp.open_studies() == {dataset.StudyInstanceUID}
        peer.release()
    _until(lambda: node.scp.open_studies() == set())


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


@ODD_UIDS
def test_every_real_file_gets_a_legal_status_and_the_node_stays_up(node: Node, pneumonia_data: Path) -> None:
    answered = 0
    for path in sorted([*(pneumonia_data / "dicom_chest").rglob("*"), *(pneumonia_data / "dicom_odd").rglob("*")]):
        content = path.read_bytes() if path.is_file() else b""
        if len(content) < 64 or path.suffix in {".md", ".txt", ".csv", ".json"}:
            continue
        try:
            syntax, offset = part10.data_set(content)
        except RejectedInstance:  # no meta information, like ACR-NEMA: implicit little endian, from the start
            syntax, offset = str(ImplicitVRLittleEndian), 0
        try:
            identity = part10.identify(content[offset:], syntax, whole=True)
            sop_class, uid = identity.sop_class_uid, identity.sop_instance_uid
        except RejectedInstance:
            sop_class, uid = DX, "1.2.3.4"
        with RawPeer(node.port) as peer:
            assert peer.associate([(sop_class, [syntax])]) == ACCEPTED, path.name
            assert peer.store(content[offset:], uid, sop_class) in LEGAL, path.name
            answered += 1
    assert answered > 70
    assert len(node.rows(instance)) + len(node.rows(rejection)) <= answered
    assert len(node.rows(instance)) >= 8
    assert all(
        row.message and not re.search(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+", row.message) for row in node.rows(rejection)
    )
    assert node.temporary_files() == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (Debian package strace)")
def test_success_is_told_only_after_file_name_and_row_are_durable(tmp_path: Path) -> None:
    if subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("ptrace is not permitted here")
    trace = tmp_path / "trace"
    calls = "openat,fsync,fdatasync,rename,sendto,write,pwrite64"
    prefix = ["strace", "-f", "--seccomp-bpf", "-y", "-e", f"trace={calls}", "-o", str(trace)]
    dataset, uid = image("one")
    with scp_process.running(tmp_path / "state", prefix=prefix) as (_, port), RawPeer(port) as peer:
        peer.associate()
        before = len(trace.read_text().splitlines())
        assert peer.store(encode(dataset), uid) == 0
        peer.release()
    lines = trace.read_text().splitlines()[before:]

    def first(pattern: str, after: int = 0) -> int:
        matches = (number for number, line in enumerate(lines) if number > after and re.search(pattern, line))
        found = next(matches, None)
        assert found is not None, f"{pattern} does not follow:\n" + "\n".join(lines)
        return found

    synced = first(r"fsync\(\d+<[^>]*/tmp/[^>]*\.part>\)")
    renamed = first(r"rename\(", synced)
    folder = first(r"fsync\(\d+<[^>]*/instances/[0-9a-f]{2}>\)", renamed)
    committed = first(r"(fsync|fdatasync)\(\d+<[^>]*sqlite3-wal>\)", folder)
    answered = first(r"sendto\(", committed)
    assert [number for number, line in enumerate(lines[:answered]) if "sendto(" in line] == []
