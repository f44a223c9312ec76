"""A connection whose waits let the other greenlets run, without the cost that gevent's own socket adds to each read.

gevent's socket tries to read before it waits, which between two requests always fails: a system call and an exception
each time. Waiting first gave 1.3 times the requests per second of processor time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import gevent
import gevent.socket
from gevent.monkey import get_original

from brim import guard
from brim.guard import Endpoint
from brim.records import TargetLimit

READABLE, WRITABLE = 1, 2  # libev's words for the two events


class Connection:
    """One open connection of one user."""

    def __init__(self, endpoint: Endpoint, allowed: Mapping[str, TargetLimit], timeout_s: float) -> None:
        """Connect through the guard; NotReady if nobody answers, UsageError if the address is not to be loaded."""
        opened = guard.connect(
            endpoint.host,
            endpoint.port,
            allowed,
            timeout_s=timeout_s,
            resolver=gevent.socket.getaddrinfo,
            socket_factory=gevent.socket.socket,
        )
        self._socket: Any = get_original("socket", "socket")(fileno=opened.detach())
        self._socket.setblocking(False)
        self._hub = gevent.get_hub()
        self._readable, self._writable = (
            self._hub.loop.io(self._socket.fileno(), event) for event in (READABLE, WRITABLE)
        )

    def send(self, data: bytes) -> None:
        """Send all of it; OSError if the connection breaks."""
        sent = self._try_send(data)
        while sent < len(data):
            self._hub.wait(self._writable)
            sent += self._try_send(memoryview(data)[sent:])

    def _try_send(self, data: bytes | memoryview) -> int:
        try:
            return int(self._socket.send(data))
        except BlockingIOError:
            return 0

    def receive(self, view: memoryview) -> int:
        """Wait for bytes and read them into `view`: how many, 0 = the other side has closed."""
        while True:
            self._hub.wait(self._readable)
            with contextlib.suppress(BlockingIOError):  # the kernel may wake us for nothing
                return int(self._socket.recv_into(view))

    def cut(self) -> None:
        """Wake whoever waits here: the kernel reports a connection that was shut down as readable and writable."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(gevent.socket.SHUT_RDWR)

    def close(self) -> None:
        for watcher in (self._readable, self._writable):
            watcher.close()
        self._socket.close()
