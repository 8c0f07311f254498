"""A service's loops go on through an absent peer and stop at once on a fault."""

from __future__ import annotations

import os
import signal
import threading

from dicom_node.core import loops
from dicom_node.core.errors import IntegrityError, Unavailable


def test_a_busy_step_is_repeated_without_pause_until_the_stop() -> None:
    stop, rounds = threading.Event(), []

    def step() -> bool:
        rounds.append(1)
        if len(rounds) == 500:
            stop.set()
        return True

    assert loops.run({"step": step}, 60.0, stop) == 0
    assert len(rounds) == 500


def test_an_unavailable_peer_pauses_its_step_and_stops_nothing() -> None:
    stop, tries = threading.Event(), []

    def flaky() -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise Unavailable("away")
        stop.set()
        return False

    assert loops.run({"flaky": flaky}, 0.01, stop) == 0
    assert len(tries) == 2


def test_a_fault_stops_the_service_with_the_errors_exit_status() -> None:
    def broken() -> bool:
        raise IntegrityError("altered")

    assert loops.run({"broken": broken, "idle": lambda: False}, 0.01, threading.Event()) == IntegrityError.exit_status


def test_an_unforeseen_exception_stops_the_service_too() -> None:
    assert loops.run({"broken": lambda: bool(1 / 0)}, 0.01, threading.Event()) == 70


def test_sigterm_ends_the_loops_cleanly() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = loops.stop_on_signals()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert loops.run({"idle": lambda: False}, 0.05, stop) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
