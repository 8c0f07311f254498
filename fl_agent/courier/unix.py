"""Frames between two programs of one machine: a question and its answer over a Unix socket (unix(7)).

A connection carries one question and one answer, each its length (4 bytes, big-endian) and so many bytes. Nothing else
can be said: whoever speaks here for a stranger can hand over bytes, and asks for no file, no object and no command.
"""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dicom_node.core import logs
from dicom_node.core.errors import ConfigError, ProtocolError, Unavailable

from .courier import Handler

log = logs.get(__name__)
LENGTH: Final = struct.Struct(">I")
#: Longest frame, bytes: one update of 16 million parameters.
LONGEST: Final = 1 << 26
#: For a caller to bring its whole question, and to take the whole answer once the handler has it, seconds.
BRING_S: Final = 30.0
IN_ONE_PIECE: Final = 1 << 16
#: ``sun_path`` holds 108 bytes, the last of them zero.
LONGEST_PATH: Final = 107


class Server:
    """Answers questions at a socket, each connection in a thread of its own, until `close`.

    Parameters
    ----------
    path : Path
        The socket; its folder exists. One that a killed process left behind is replaced.
    handler : Handler
        Gives a question's answer; called by several threads. Should it raise against its promise, the caller is left
        without an answer, the fault is logged, and others are served.
    group : str, optional
        Group whose members may ask besides our own user: mode 0660 instead of 0600.

    Raises
    ------
    ConfigError
        The path is too long (``socket-path``), another process serves it (``socket-in-use``), it cannot be made there
        (``listen``), or the group does not exist or is not ours (``socket-group``).
    """

    def __init__(self, path: Path, handler: Handler, group: str | None = None) -> None:
        self.path = path
        _check(path)
        if served(path):
            raise ConfigError(f"another process serves {path}; stop it or choose another path", code="socket-in-use")
        try:
            path.unlink(missing_ok=True)
            self._server = _Listener(str(path), handler)
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror}", code="listen") from error
        if group is not None:
            self._admit(group)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name=path.name, daemon=True)
        self._thread.start()

    def _admit(self, group: str) -> None:
        try:
            shutil.chown(self.path, group=group)
            self.path.chmod(0o660)
        except (LookupError, OSError) as error:
            self._server.server_close()
            raise ConfigError(f"{self.path} cannot be given to the group {group}", code="socket-group") from error

    def close(self) -> None:
        """Take no more questions; what a handler still works on is answered if the process lives on."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve(path: Path, handler: Handler, group: str | None = None) -> Server:
    """Answer questions at a socket in threads of their own; see `Server`."""
    return Server(path, handler, group)


def served(path: Path) -> bool:
    """Say whether somebody serves the socket, without asking anything."""
    try:
        _dial(path, BRING_S).close()
    except OSError:
        return False
    return True


def ask(path: Path, frame: bytes, timeout_s: float) -> bytes:
    """Bring a frame to whoever serves the socket and wait for the answer.

    Parameters
    ----------
    frame : bytes
        At most `LONGEST` bytes; may be empty.
    timeout_s : float
        For all of it, however slowly the answer drips.

    Raises
    ------
    Unavailable
        Nobody serves the socket (``socket-away``), the answer did not come in time (``socket-timeout``), or the other
        side gave none (``connection-closed``).
    ProtocolError
        The frame or the answer is too long (``frame-too-long``).
    """
    _check(path)
    deadline = time.monotonic() + timeout_s
    try:
        connection = _dial(path, timeout_s)
    except OSError as error:
        raise Unavailable(f"nobody serves {path}; start that service", code="socket-away") from error
    with connection:
        try:
            _send(connection, frame, deadline)
            return _receive(connection, deadline)
        except TimeoutError as error:
            raise Unavailable(f"no answer came from {path} in time", code="socket-timeout") from error
        except OSError as error:
            raise Unavailable(f"whoever serves {path} gave no answer", code="connection-closed") from error


class _Listener(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, handler: Handler) -> None:
        self.handler = handler
        super().__init__(path, _Conversation)

    def server_bind(self) -> None:
        # The mode of an unbound socket becomes the file's mode (Linux, unix_bind): it is never open to others.
        os.fchmod(self.socket.fileno(), 0o600)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep the standard library from printing; `_Conversation` has logged what there was."""


class _Conversation(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Listener

    def handle(self) -> None:
        try:
            self.request.settimeout(BRING_S)
            if not self.request.recv(1, socket.MSG_PEEK):
                return  # only looked whether we are here
            question = _receive(self.request, time.monotonic() + BRING_S)
            answer = self.server.handler(question)
            _send(self.request, answer, time.monotonic() + BRING_S)
        except (OSError, ProtocolError) as error:
            log.warning("question-lost", **logs.describe(error))  # the caller is gone, slow or speaks out of turn
        except Exception as error:
            log.error("question-fault", **logs.describe(error))


def _check(path: Path) -> None:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(f"{path} is longer than the {LONGEST_PATH} bytes of a socket's path", code="socket-path")


def _dial(path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(max(timeout_s, 1e-3))
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _send(connection: socket.socket, frame: bytes, deadline: float) -> None:
    if len(frame) > LONGEST:
        raise ProtocolError(f"a frame of {len(frame)} bytes, {LONGEST} may go", code="frame-too-long")
    # Nothing may follow a whole question: its reader may have answered and gone. So a short one goes out in one piece.
    length = LENGTH.pack(len(frame))
    for part in (length, frame) if len(frame) > IN_ONE_PIECE else (length + frame,):
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        connection.sendall(part)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    (size,) = LENGTH.unpack(_read(connection, LENGTH.size, deadline))
    if size > LONGEST:
        raise ProtocolError(f"a frame of {size} bytes, {LONGEST} may come", code="frame-too-long")
    return bytes(_read(connection, size, deadline))


def _read(connection: socket.socket, size: int, deadline: float) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionResetError("the other side closed the connection")
        view = view[count:]
    return data
