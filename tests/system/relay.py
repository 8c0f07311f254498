"""A service's place on the wire, taken by a test: it has both certificates, passes frames on, and may spoil them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Literal

from dicom_node.core import tls
from dicom_node.core.settings import EndpointSettings, TlsSettings
from secure_infer.transport.channel import LENGTH, end_both_ways
from tests.system.roles import Roles

#: Caller to service, and back.
Way = Literal["asks", "answers"]
#: What is passed on in place of a frame; an empty answer ends both connections.
Spoil = Callable[[Way, bytes], list[bytes]]


def honest(_: Way, frame: bytes) -> list[bytes]:
    return [frame]


class Relay:
    """Listens in place of a service of `roles`, towards one of its callers.

    Attributes
    ----------
    spoil : callable
        What becomes of a frame.
    drip_s : float
        Pause after every byte of an answer, seconds.
    """

    def __init__(self, roles: Roles, role: str, caller: str = "hospital") -> None:
        self.spoil: Spoil = honest
        self.drip_s = 0.0
        self._roles, self._role, self._caller = roles, role, caller
        self.show(roles.tls[role])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> EndpointSettings:
        """Where the caller finds the relay in place of the service."""
        port = self._listener.getsockname()[1]
        return EndpointSettings(host="127.0.0.1", port=port, fingerprint=self._roles.fingerprint(self._role))

    def show(self, files: TlsSettings) -> None:
        """Take a certificate to show from now on."""
        self._context = tls.server_context(files)

    def dial(self) -> ssl.SSLSocket:
        """Connect to the service as the caller would."""
        at = self._roles.endpoint(self._role)
        context = tls.client_context(self._roles.tls[self._caller])
        return tls.connect(at.host, at.port, context, at.fingerprint, 5.0)

    def drop(self) -> None:
        """End all connections; the next ones come as before."""
        while self._open:
            one = self._open.pop()
            end_both_ways(one)
            one.close()

    def close(self) -> None:
        end_both_ways(self._listener)
        self._listener.close()
        self._thread.join()
        self.drop()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(Exception):  # whatever ends here, the caller's error is what the test looks at
            near = tls.handshake(plain, self._context, 5.0, server_side=True)
            self._open.append(near)
            far = self.dial()
            self._open.append(far)
            for one in (near, far):
                one.settimeout(None)
            back = threading.Thread(target=self._pass, args=(far, near, "answers"), daemon=True)
            back.start()
            self._pass(near, far, "asks")

    def _pass(self, source: ssl.SSLSocket, sink: ssl.SSLSocket, way: Way) -> None:
        try:
            while True:
                (size,) = LENGTH.unpack(_read(source, LENGTH.size))
                passed = self.spoil(way, _read(source, size))
                if not passed:
                    return
                for frame in passed:
                    self._write(sink, LENGTH.pack(len(frame)) + frame, way)
        except OSError:
            return  # one of the two has ended
        finally:
            end_both_ways(source)
            end_both_ways(sink)

    def _write(self, sink: ssl.SSLSocket, data: bytes, way: Way) -> None:
        if way == "answers" and self.drip_s:
            for byte in data:
                sink.sendall(bytes([byte]))
                time.sleep(self.drip_s)
        else:
            sink.sendall(data)


def _read(source: ssl.SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return bytes(data)
