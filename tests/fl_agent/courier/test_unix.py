"""Questions and answers over a real Unix socket: exact bytes, bounded in size and time, open to one user or group."""

from __future__ import annotations

import grp
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.core.errors import ConfigError, ProtocolError, Unavailable
from fl_agent.courier import unix

LONG_S = 20.0


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory() as folder:  # pytest's own paths may be longer than a socket's
        yield Path(folder) / "socket"


@pytest.fixture(scope="module")
def mirror() -> Iterator[unix.Server]:
    with TemporaryDirectory() as folder, unix.serve(Path(folder) / "s", lambda question: question[::-1]) as server:
        yield server


@given(frame=st.binary(max_size=1000))
@settings(max_examples=50, deadline=None)
def test_a_question_comes_back_to_the_bit(mirror: unix.Server, frame: bytes):
    assert unix.ask(mirror.path, frame, LONG_S) == frame[::-1]


def test_a_frame_larger_than_any_buffer_of_the_kernel_passes(path: Path):
    frame = os.urandom(1 << 23)
    with unix.serve(path, bytes):
        assert unix.ask(path, frame, LONG_S) == frame


def test_questions_are_answered_at_the_same_time(path: Path):
    meeting = threading.Barrier(3, timeout=LONG_S)

    def handler(question: bytes) -> bytes:
        meeting.wait()
        return question

    answers: list[bytes] = []
    with unix.serve(path, handler):
        callers = [threading.Thread(target=lambda: answers.append(unix.ask(path, b"?", LONG_S))) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert answers == [b"?"] * 3


def test_nobody_there_is_said_at_once(path: Path):
    with pytest.raises(Unavailable) as caught:
        unix.ask(path, b"", LONG_S)
    assert caught.value.code == "socket-away"


def test_one_may_look_whether_a_socket_is_served_without_asking(path: Path):
    asked: list[bytes] = []
    assert not unix.served(path)
    with unix.serve(path, lambda question: asked.append(question) or b""):
        assert unix.served(path)
        unix.ask(path, b"asked", LONG_S)
    assert asked == [b"asked"]
    assert not unix.served(path)


def test_an_answer_that_takes_too_long_is_given_up(path: Path):
    never = threading.Event()
    with unix.serve(path, lambda _: bytes(never.wait(LONG_S))), pytest.raises(Unavailable) as caught:
        unix.ask(path, b"", 0.05)
    never.set()
    assert caught.value.code == "socket-timeout"


def test_a_handler_that_breaks_its_promise_stops_nobody_else(path: Path):
    def handler(question: bytes) -> bytes:
        if question == b"bad":
            raise ValueError("a fault of ours")
        return b"good"

    with unix.serve(path, handler):
        with pytest.raises(Unavailable) as caught:
            unix.ask(path, b"bad", LONG_S)
        assert caught.value.code == "connection-closed"
        assert unix.ask(path, b"", LONG_S) == b"good"


def test_a_stated_length_beyond_the_limit_is_refused_before_it_is_read(path: Path):
    asked: list[bytes] = []
    with unix.serve(path, lambda question: asked.append(question) or b""):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            caller.sendall(unix.LENGTH.pack(unix.LONGEST + 1))
            assert caller.recv(1) == b""
        assert asked == []


def test_an_answer_beyond_the_limit_is_refused_before_it_is_read(path: Path):
    with socket.socket(socket.AF_UNIX) as liar:
        liar.bind(str(path))
        liar.listen()

        def lie() -> None:
            called, _ = liar.accept()
            with called:
                called.recv(4)
                called.sendall(unix.LENGTH.pack(unix.LONGEST + 1))
                called.recv(1)

        threading.Thread(target=lie, daemon=True).start()
        with pytest.raises(ProtocolError) as caught:
            unix.ask(path, b"", LONG_S)
    assert caught.value.code == "frame-too-long"


def test_a_question_beyond_the_limit_is_not_sent(path: Path):
    with unix.serve(path, bytes), pytest.raises(ProtocolError) as caught:
        unix.ask(path, bytes(unix.LONGEST + 1), LONG_S)
    assert caught.value.code == "frame-too-long"


def test_a_caller_that_leaves_in_the_middle_of_its_question_is_not_answered(path: Path):
    asked: list[bytes] = []
    with unix.serve(path, lambda question: asked.append(question) or b"answer"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            caller.sendall(unix.LENGTH.pack(10) + b"half")
        assert unix.ask(path, b"whole", LONG_S) == b"answer"
    assert asked == [b"whole"]


def test_the_socket_is_open_to_our_own_user_alone(path: Path):
    with unix.serve(path, bytes):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_group_may_be_let_in(path: Path):
    group = grp.getgrgid(os.getgid()).gr_name
    with unix.serve(path, bytes, group):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, os.getgid())


def test_a_group_that_does_not_exist_lets_nobody_in(path: Path):
    with pytest.raises(ConfigError) as caught:
        unix.serve(path, bytes, "no-such-group")
    assert caught.value.code == "socket-group"
    with pytest.raises(Unavailable):
        unix.ask(path, b"", LONG_S)


def test_a_socket_left_by_a_killed_process_is_replaced(path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix.serve(path, lambda _: b"alive"):
        assert unix.ask(path, b"", LONG_S) == b"alive"


def test_a_socket_that_is_served_is_not_taken_away(path: Path):
    with unix.serve(path, lambda _: b"first"):
        with pytest.raises(ConfigError) as caught:
            unix.serve(path, lambda _: b"second")
        assert caught.value.code == "socket-in-use"
        assert unix.ask(path, b"", LONG_S) == b"first"


def test_a_path_too_long_for_a_socket_is_named(path: Path):
    with pytest.raises(ConfigError) as caught:
        unix.serve(path.parent / ("x" * 120), bytes)
    assert caught.value.code == "socket-path"


def test_a_folder_that_does_not_exist_is_named(path: Path):
    with pytest.raises(ConfigError) as caught:
        unix.serve(path.parent / "absent" / "socket", bytes)
    assert caught.value.code == "listen"


def test_after_its_end_the_socket_is_gone(path: Path):
    unix.serve(path, bytes).close()
    assert not path.exists()
