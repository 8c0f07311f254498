"""A bundle is spent once, by whichever process comes first, and stays spent."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core import markfile
from dicom_node.core.errors import ProtocolError, Unavailable
from secure_infer.spent import Allowance, SpentLedger
from tests.system import holdings

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
        "import os, signal, sys; from pathlib import Path; from secure_infer.spent import SpentLedger\n"
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


def test_memory_holds_a_few_pages_of_the_marks_however_many_there_are(tmp_path):
    path = tmp_path / "spent.sqlite3"
    SpentLedger(path).close()
    taken = []
    with contextlib.closing(sqlite3.connect(path)) as alone:
        marks = ((number.to_bytes(16, "big"), PEER, 1.0) for number in range(40_000))
        alone.executemany("INSERT INTO spent VALUES (?, ?, ?)", marks)
        alone.commit()
    ledger = SpentLedger(path)
    if not holdings.take().sqlite_kib:  # it has just opened a file, which takes some where one can ask
        ledger.close()
        pytest.skip("this Python has SQLite built in: it cannot be asked for its memory")
    with contextlib.closing(sqlite3.connect(path)) as alone:
        count = lambda: alone.execute("SELECT count(*) FROM spent WHERE peer = ? AND at > 0", (PEER,))  # noqa: E731
        for reads in (lambda: ledger.left(PEER, 1.0, Allowance(1, 1.0, 1)), lambda: count().fetchone()):
            before = holdings.take().sqlite_kib
            reads()
            taken.append(holdings.take().sqlite_kib - before)
    ledger.close()
    assert taken[0] < 2 * markfile.CACHE_KIB < 1000 < taken[1]  # the second: what SQLite takes if left alone


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
    three = Allowance(daily=3, per_minute=60, burst=3)
    for number in range(3):
        assert ledger.left(PEER, 1000.0, three) == 3 - number
        ledger.spend(bytes([number]) * 16, PEER, 1000.0, three)
    with pytest.raises(Unavailable) as caught:
        ledger.spend(ONE, PEER, 1000.0 + 86399, three)
    assert caught.value.code == "quota-exhausted"
    assert (ledger.left(PEER, 1000.0, three), ledger.left(OTHER, 1000.0, three)) == (0, 3)
    ledger.spend(TWO, OTHER, 1000.0, three)
    ledger.spend(ONE, PEER, 1000.0 + 86400, three)
    ledger.close()


class Bucket:
    """The slow obvious way: tokens that are counted and filled."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance, self._tokens, self._at = allowance, float(allowance.burst), 0.0

    def take(self, now: float) -> bool:
        filled = self._tokens + (now - self._at) / self._allowance.interval_s
        self._tokens, self._at = min(filled, self._allowance.burst), now
        if self._tokens < 1 - 1e-6:
            return False
        self._tokens -= 1
        return True


@settings(max_examples=30, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 300).map(lambda tenths: tenths / 10), min_size=1, max_size=40),
    st.sampled_from([4.0, 60.0, 90.0]),
    st.integers(1, 5),
)
def test_a_rate_is_a_token_bucket_that_survives_restarts(pauses, per_minute, burst):
    allowance = Allowance(daily=10**6, per_minute=per_minute, burst=burst)
    reference, now = Bucket(allowance), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, pause in enumerate(pauses):
            now += pause
            ledger = SpentLedger(Path(folder) / "spent.sqlite3")
            if reference.take(now):
                ledger.spend(number.to_bytes(16, "big"), PEER, now, allowance)
            else:
                with pytest.raises(Unavailable) as caught:
                    ledger.spend(number.to_bytes(16, "big"), PEER, now, allowance)
                assert caught.value.code == "rate-limited"
            ledger.close()


def test_one_certificates_haste_does_not_slow_another_and_a_clock_set_back_locks_nobody_out(tmp_path):
    ledger = SpentLedger(tmp_path / "spent.sqlite3")
    two = Allowance(daily=100, per_minute=60, burst=2)
    for number in range(2):
        ledger.spend(bytes([number]) * 16, PEER, 90_000.0, two)
    with pytest.raises(Unavailable):
        ledger.spend(b"3" * 16, PEER, 90_000.5, two)
    ledger.spend(b"4" * 16, OTHER, 90_000.5, two)
    ledger.spend(b"3" * 16, PEER, 80_000.0, two)  # what was refused was not marked
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
