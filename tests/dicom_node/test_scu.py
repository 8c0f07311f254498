"""C-STORE and C-ECHO against real peers: DCMTK, and SCPs that refuse, fall silent, abort or are not there."""

from __future__ import annotations

import socket
import threading
import time
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage, Comprehensive3DSRStorage, ComprehensiveSRStorage

from dicom_node import scu, uids
from dicom_node.core.errors import ConfigError, Refused, Unavailable
from dicom_node.core.pki import Authority
from dicom_node.core.settings import TlsSettings
from dicom_node.scu import Scu
from dicom_node.storage_status import judge

from .peers import destination, free_port, report, scripted_scp, storescp, uid

BOTH = (Comprehensive3DSRStorage, ComprehensiveSRStorage)


@pytest.fixture
def caller() -> Scu:
    return Scu("VEILRAY", response_s=1.0, negotiation_s=1.0)


def test_a_report_arrives_as_it_is_where_its_class_is_accepted(caller: Scu, tmp_path: Path) -> None:
    sent = report()
    with storescp(tmp_path, classes=["VerificationSOPClass", "Comprehensive3DSRStorage"]) as peer:
        caller.echo(peer.destination)
        receipt = caller.store(peer.destination, sent)
        (kept,) = peer.kept()
    assert (receipt.status, receipt.warning) == (0, "")
    assert (receipt.sop_class_uid, receipt.sop_instance_uid) == (Comprehensive3DSRStorage, uid(sent))
    assert kept == pydicom.dcmread(BytesIO(sent))


def test_an_archive_without_comprehensive_3d_sr_gets_the_same_tree_as_comprehensive_sr(
    caller: Scu, tmp_path: Path
) -> None:
    earlier = uids.derive("earlier report")
    sent = report(predecessor=earlier)
    with storescp(tmp_path, classes=["ComprehensiveSRStorage"]) as peer:
        receipts = [caller.store(peer.destination, sent) for _ in range(2)]
        (kept,) = peer.kept()
    expected = uids.derive(uid(sent), "comprehensive-sr")
    assert {receipt.sop_instance_uid for receipt in receipts} == {expected}
    assert (kept.SOPClassUID, kept.SOPInstanceUID) == (ComprehensiveSRStorage, expected)
    assert kept.file_meta.MediaStorageSOPInstanceUID == expected
    original = pydicom.dcmread(BytesIO(sent))
    assert kept.ContentSequence == original.ContentSequence
    reference = kept.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPClassUID == ComprehensiveSRStorage
    assert reference.ReferencedSOPInstanceUID == uids.derive(earlier, "comprehensive-sr")


def test_the_text_report_goes_out_under_its_own_class(caller: Scu, tmp_path: Path) -> None:
    with storescp(tmp_path, classes=["BasicTextSRStorage"]) as peer:
        caller.store(peer.destination, report(sop_class=BasicTextSRStorage))
        assert [kept.SOPClassUID for kept in peer.kept()] == [BasicTextSRStorage]


def test_a_peer_that_wants_implicit_vr_gets_implicit_vr(caller: Scu, tmp_path: Path) -> None:
    with storescp(tmp_path, "+xi", "-pm") as peer:
        caller.store(peer.destination, report(sop_class=BasicTextSRStorage))
        (kept,) = peer.kept()
    assert kept.file_meta.TransferSyntaxUID.is_implicit_VR
    assert kept.ContentSequence[0].TextValue == "Nothing seen"


def test_a_peer_that_accepts_no_report_class_is_a_final_refusal(caller: Scu, tmp_path: Path) -> None:
    with storescp(tmp_path, classes=["CTImageStorage"]) as peer, pytest.raises(Refused) as caught:
        caller.store(peer.destination, report())
    assert caught.value.code == "sop-class-not-accepted"


def test_statuses_are_told_apart_by_what_to_do(caller: Scu) -> None:
    wanted: dict[int, type[Exception] | None] = {
        **dict.fromkeys((0x0000, 0x0111, 0xB000, 0xB006, 0xB007)),
        **dict.fromkeys((0x0110, 0xA700, 0xA7FF), Unavailable),
        **dict.fromkeys((0x0117, 0x0122, 0x0124, 0xA900, 0xC000, 0xC123), Refused),
    }
    answers = iter(wanted)
    with scripted_scp(lambda event: next(answers), [Comprehensive3DSRStorage]) as port:
        for status, error in wanted.items():
            if error is None:
                receipt = caller.store(destination(port), report())
                assert receipt.status == status
                assert bool(receipt.warning) is (status != 0)
            else:
                with pytest.raises(error, match=f"0x{status:04X}"):
                    caller.store(destination(port), report())


def test_every_status_is_judged_and_only_success_and_warnings_pass() -> None:
    passing = set()
    for status in range(0x10000):
        try:
            judge(status, "pacs")
            passing.add(status)
        except (Refused, Unavailable):
            pass
    assert passing == {0x0000, 0x0001, 0x0107, 0x0111, 0x0116} | set(range(0xB000, 0xC000))


def test_a_class_that_is_negotiated_but_refused_at_storing_falls_back_in_the_same_association(caller: Scu) -> None:
    seen: list[tuple[str, int]] = []

    def on_store(event: object) -> int:
        seen.append((event.request.AffectedSOPClassUID, id(event.assoc)))
        return 0x0122 if event.request.AffectedSOPClassUID == Comprehensive3DSRStorage else 0

    with scripted_scp(on_store, BOTH) as port:
        receipt = caller.store(destination(port), report())
    assert receipt.sop_class_uid == ComprehensiveSRStorage
    assert [one for one, _ in seen] == list(BOTH)
    assert len({association for _, association in seen}) == 1


def test_a_peer_that_is_not_there_may_come_back(caller: Scu) -> None:
    with pytest.raises(Unavailable) as caught:
        caller.store(destination(free_port()), report())
    assert caught.value.code == "unreachable"


def test_a_host_name_that_is_unknown_may_become_known(caller: Scu) -> None:
    unknown = destination(104).model_copy(update={"host": "no-such-host.invalid"})
    with pytest.raises(Unavailable, match="host name is unknown"):
        caller.echo(unknown)


def test_a_peer_that_aborts_in_the_middle_may_take_it_later(caller: Scu) -> None:
    def abort(event: object) -> int:
        event.assoc.abort()
        return 0

    with scripted_scp(abort, BOTH) as port, pytest.raises(Unavailable) as caught:
        caller.store(destination(port), report())
    assert caught.value.code == "association-lost"


def test_a_peer_that_never_answers_costs_no_more_than_the_time_outs(caller: Scu) -> None:
    woken = threading.Event()

    def sleep(event: object) -> int:
        woken.wait(10)
        return 0

    with scripted_scp(sleep, BOTH) as port:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            caller.store(destination(port), report())
        assert time.monotonic() - started < caller.longest_s
        woken.set()


def test_a_listener_that_says_nothing_costs_no_more_than_the_negotiation(caller: Scu) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            caller.echo(destination(listener.getsockname()[1]))
        assert time.monotonic() - started < caller.longest_s


def test_a_peer_that_stops_reading_does_not_hold_the_sender_for_ever(caller: Scu, tmp_path: Path) -> None:
    """The peer accepts the association and then reads nothing, while megabytes wait to be sent."""
    big = pydicom.dcmread(BytesIO(report(sop_class=BasicTextSRStorage)))
    big.ContentSequence[0].TextValue = "x" * 32_000_000
    buffer = BytesIO()
    big.save_as(buffer)

    def stall(event: object) -> None:
        event.assoc.dul.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        time.sleep(6)

    from pynetdicom import AE, evt

    entity = AE("PACS")
    entity.add_supported_context(BasicTextSRStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_PDU_SENT, stall)])
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            caller.store(destination(server.server_address[1]), buffer.getvalue())
        assert time.monotonic() - started < 5.5
    finally:
        server.shutdown()


def test_a_peer_that_does_not_know_us_is_a_final_refusal_with_the_reason(caller: Scu) -> None:
    with scripted_scp(lambda event: 0, BOTH, calling="SOMEBODY") as port, pytest.raises(Refused) as caught:
        caller.echo(destination(port))
    assert "it does not know our calling AE title" in str(caught.value)


def test_a_peer_at_its_limit_may_have_room_later(caller: Scu) -> None:
    from pynetdicom import AE

    entity = AE("PACS")
    entity.maximum_associations = 1
    for sop_class in BOTH:
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        port = server.server_address[1]
        client = AE("OTHER")
        client.add_requested_context(ComprehensiveSRStorage)
        holder = client.associate("127.0.0.1", port)
        assert holder.is_established
        with pytest.raises(Unavailable) as caught:
            caller.store(destination(port), report())
        assert caught.value.code == "association-rejected-for-now"
        holder.release()
    finally:
        server.shutdown()


def test_files_are_sent_as_they_are_and_each_gets_its_outcome(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(report(str(number), sop_class=BasicTextSRStorage))
    files.insert(1, tmp_path / "notes.txt")
    files[1].write_text("not DICOM")
    files.append(tmp_path / "other.dcm")
    files[-1].write_bytes(report("other"))
    with storescp(tmp_path / "peer", classes=["BasicTextSRStorage"]) as peer:
        outcomes = {one.path.name: one for one in scu.send(files, host="127.0.0.1", port=peer.port, called="PACS")}
        kept = peer.kept()
    assert {name: one.ok for name, one in outcomes.items()} == {
        "0.dcm": True,
        "1.dcm": True,
        "2.dcm": True,
        "notes.txt": False,
        "other.dcm": False,
    }
    assert outcomes["0.dcm"].status_text == "0x0000"
    assert "does not accept" in outcomes["other.dcm"].meaning
    assert len(kept) == 3


def test_a_file_that_makes_the_peer_abort_does_not_keep_the_others_from_being_sent(tmp_path: Path) -> None:
    files = []
    for name in "abc":
        files.append(tmp_path / f"{name}.dcm")
        files[-1].write_bytes(report(name))
    bad = uid(files[1].read_bytes())

    def on_store(event: object) -> int:
        if event.request.AffectedSOPInstanceUID == bad:
            event.assoc.abort()
        return 0

    with scripted_scp(on_store, BOTH) as port:
        outcomes = list(scu.send(files, host="127.0.0.1", port=port, called="PACS"))
    assert [one.ok for one in outcomes] == [True, False, True]


def test_a_peer_that_accepts_nothing_leaves_an_outcome_for_every_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(report())
    with scripted_scp(lambda event: 0, []) as port:
        (outcome,) = scu.send([path], host="127.0.0.1", port=port, called="PACS")
    assert not outcome.ok
    assert "does not accept" in outcome.meaning


def test_a_report_travels_over_mutual_tls(caller: Scu, tmp_path: Path) -> None:
    ours, theirs = (Authority(tmp_path / name) for name in ("ours", "theirs"))
    client, server = ours.issue("veilray"), theirs.issue("pacs")
    options = ["+tls", str(server.key), str(server.certificate), "+cf", str(client.ca), "-rc"]
    tls = TlsSettings(certificate=client.certificate, key=client.key, ca=server.ca)
    with storescp(tmp_path / "peer", *options, classes=["Comprehensive3DSRStorage"]) as peer:
        receipt = caller.store(destination(peer.port, tls=tls), report())
        assert len(peer.kept()) == 1
        assert receipt.status == 0
        with pytest.raises(Unavailable):  # in the clear, nobody listens
            caller.store(peer.destination, report())


def test_a_certificate_of_another_host_is_not_accepted(caller: Scu, tmp_path: Path) -> None:
    ours, theirs = (Authority(tmp_path / name) for name in ("ours", "theirs"))
    client, server = ours.issue("veilray"), theirs.issue("pacs", hosts=("other.example.org",))
    options = ["+tls", str(server.key), str(server.certificate), "+cf", str(client.ca), "-rc"]
    tls = TlsSettings(certificate=client.certificate, key=client.key, ca=server.ca)
    with storescp(tmp_path / "peer", *options, classes=["Comprehensive3DSRStorage"]) as peer:
        with pytest.raises(Unavailable, match="TLS"):
            caller.store(destination(peer.port, tls=tls), report())
        assert peer.kept() == []


def test_a_certificate_file_that_cannot_be_used_is_named(caller: Scu, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    tls = TlsSettings(certificate=absent, key=absent, ca=absent)
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        caller.echo(destination(104, tls=tls))
