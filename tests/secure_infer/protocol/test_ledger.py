"""A bundle is spent once, by whichever process comes first, and stays spent."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from dicom_node.core.errors import ProtocolError, Unavailable
from secure_infer.protocol.ledger import SpentLedger

ONE, TWO, PEER, OTHER = b"1" * 16, b"2" * 16, b"p" * 32, b"o" * 32


def test_a_bundle_is_spent_once_even_after_a_restart(tmp_path):
    ledger = SpentLedger(tmp_path / "state" / "spent.sqlite3")
    ledger.spend(ONE, PEER, 0.0)
    ledger.close()
    again = SpentLedger(tmp_path / "state" / "spent.sqlite3")
    for peer in (PEER, OTHER):
        with pytest.raises(ProtocolError) as caught:
            again.spend(ONE, peer, 1.0)
        assert caught.value.code == "bundle-reused"
    again.spend(TWO, PEER, 1.0)
    again.close()


def test_a_mark_survives_the_kill_of_the_process_that_made_it(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from secure_infer.protocol.ledger import SpentLedger\n"
        "SpentLedger(Path(sys.argv[1])).spend(b'1' * 16, b'p' * 32, 0.0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "spent.sqlite3")], check=False)
    assert ended.returncode == -signal.SIGKILL
    ledger = SpentLedger(tmp_path / "spent.sqlite3")
    with pytest.raises(ProtocolError):
        ledger.spend(ONE, PEER, 0.0)
    ledger.close()


def test_every_mark_is_forced_to_the_disk(tmp_path):
    ledger = SpentLedger(tmp_path / "spent.sqlite3")
    assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    ledger.close()


def test_of_many_who_spend_one_bundle_at_once_one_succeeds(tmp_path):
    ledgers = [SpentLedger(tmp_path / "spent.sqlite3") for _ in range(2)]
    outcomes = []

    def spend(ledger: SpentLedger) -> None:
        try:
            ledger.spend(ONE, PEER, 0.0)
            outcomes.append("spent")
        except ProtocolError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=spend, args=(ledgers[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["bundle-reused"] * 7 + ["spent"]
    for ledger in ledgers:
        ledger.close()


def test_a_quota_counts_the_last_24_hours_of_one_certificate(tmp_path):
    ledger = SpentLedger(tmp_path / "spent.sqlite3")
    for number in range(3):
        ledger.spend(bytes([number]) * 16, PEER, 1000.0, quota=3)
    with pytest.raises(Unavailable) as caught:
        ledger.spend(ONE, PEER, 1000.0 + 86399, quota=3)
    assert caught.value.code == "quota-exhausted"
    ledger.spend(TWO, OTHER, 1000.0, quota=3)
    ledger.spend(ONE, PEER, 1000.0 + 86400, quota=3)
    ledger.close()


def test_a_ledger_that_cannot_be_written_stops_the_computation(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable) as caught:
        SpentLedger(tmp_path / "file" / "spent.sqlite3")
    assert caught.value.code == "ledger"
    ledger = SpentLedger(tmp_path / "spent.sqlite3")
    ledger._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable):
        ledger.spend(ONE, PEER, 0.0)
    ledger._connection.execute("PRAGMA query_only = OFF")
    ledger.spend(ONE, PEER, 0.0)
    ledger.close()
