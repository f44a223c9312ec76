"""A connection inside TLS whose waits let the other greenlets run: what connection.Connection is for plain HTTP."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Mapping
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

from brim.access import open_tls
from brim.errors import NotReady
from brim.guard import Endpoint
from brim.records import TargetLimit
from loadtest.senders.connection import READABLE, open_socket


class TlsConnection:
    """One open connection of one user."""

    def __init__(
        self, endpoint: Endpoint, allowed: Mapping[str, TargetLimit], timeout_s: float, context: ssl.SSLContext
    ) -> None:
        """Connect through the guard and shake hands, both within `timeout_s`; NotReady says what failed.

        `context` must be gevent's own (locust patches the standard library's).
        """
        deadline = time.monotonic() + timeout_s
        opened = open_socket(endpoint, allowed, timeout_s)
        late = NotReady(f"{endpoint.url}: connecting and the TLS handshake took over {timeout_s:g} s; is it busy?")
        with gevent.Timeout(max(0.001, deadline - time.monotonic()), late):
            self._socket: Any = open_tls(opened, context, endpoint)
        self._socket.settimeout(None)
        self._hub = gevent.get_hub()
        self._readable = self._hub.loop.io(self._socket.fileno(), READABLE)

    def send(self, data: bytes) -> None:
        """Send all of it; OSError if the connection breaks."""
        self._socket.sendall(data)

    def receive(self, view: memoryview) -> int:
        """Wait for bytes and read them into `view`: how many, 0 = the other side has closed."""
        if not self._socket.pending():  # waiting first saves the read that would fail
            self._hub.wait(self._readable)
        return int(self._socket.recv_into(view))

    def cut(self) -> None:
        """Wake whoever waits here: the kernel reports a connection that was shut down as readable and writable."""
        with contextlib.suppress(OSError):
            gevent.socket.socket.shutdown(self._socket, gevent.socket.SHUT_RDWR)  # not TLS's own, which drops its state

    def close(self) -> None:
        self._readable.close()
        self._socket.close()
