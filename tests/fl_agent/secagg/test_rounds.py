"""A round is entered once, also across processes and `kill -9`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.core.errors import ProtocolError, Unavailable
from fl_agent.secagg.client import Client
from fl_agent.secagg.rounds import RoundLedger
from fl_agent.secagg.stages import Stage
from tests.fl_agent.secagg.consortium import Consortium

#: Enters a round and dies at once, as in a power cut.
DIES = """
import os, signal, sys
from pathlib import Path
from fl_agent.secagg.rounds import RoundLedger
RoundLedger(Path(sys.argv[1])).enter(b"r" * 16, int(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def code_of(ledger: RoundLedger, run: bytes, number: int) -> str:
    with pytest.raises(ProtocolError) as raised:
        ledger.enter(run, number)
    return raised.value.code


def test_numbers_grow_within_a_run_and_runs_are_independent(tmp_path: Path) -> None:
    ledger = RoundLedger(tmp_path / "rounds.sqlite")
    ledger.enter(b"a" * 16, 1)
    ledger.enter(b"a" * 16, 7)
    ledger.enter(b"b" * 16, 2)
    for run, number in ((b"a", 1), (b"a", 6), (b"a", 7), (b"b", 2), (b"b", 1)):
        assert code_of(ledger, run * 16, number) == "round-reused"
    ledger.enter(b"a" * 16, 8)


def test_a_round_entered_before_kill_9_is_not_entered_again(tmp_path: Path) -> None:
    path = tmp_path / "rounds.sqlite"
    killed = subprocess.run([sys.executable, "-c", DIES, str(path), "5"], check=False)
    assert killed.returncode == -signal.SIGKILL
    ledger = RoundLedger(path)
    assert code_of(ledger, b"r" * 16, 5) == "round-reused"
    assert code_of(ledger, b"r" * 16, 4) == "round-reused"
    ledger.enter(b"r" * 16, 6)


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    one, other = (RoundLedger(tmp_path / "rounds.sqlite") for _ in range(2))
    one.enter(b"r" * 16, 1)
    assert code_of(other, b"r" * 16, 1) == "round-reused"


def test_a_client_without_a_ledger_makes_no_keys(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    ledger = RoundLedger(tmp_path / "closed.sqlite")
    ledger.close()
    client = Client(consortium.identities[1], consortium.policy(), ledger)
    with pytest.raises(Unavailable) as raised:
        client.handle(consortium.server.start()[0].frame)
    assert raised.value.code == "round-ledger"
    assert client.stage is Stage.ABORTED


def test_a_ledger_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        RoundLedger(tmp_path / "file" / "rounds.sqlite")


def test_a_restarted_client_refuses_the_round_it_was_in(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    frame = consortium.server.start()[0].frame
    consortium.clients[1].handle(frame)
    again = consortium.client(1)
    with pytest.raises(ProtocolError) as raised:
        again.handle(frame)
    assert raised.value.code == "round-reused"


def test_a_header_of_a_stranger_does_not_use_a_round_up(tmp_path: Path) -> None:
    consortium, stranger = Consortium(tmp_path / "a"), Consortium(tmp_path / "b")
    with pytest.raises(ProtocolError) as raised:
        consortium.clients[1].handle(stranger.server.start()[0].frame)
    assert raised.value.code == "bad-signature"
    assert consortium.client(1).handle(consortium.server.start()[0].frame)
