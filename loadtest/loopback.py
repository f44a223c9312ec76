"""How many bytes a second a plain copy over loopback TCP reaches: what a payload's rate is held against.

One process sends payloads of one size as fast as it can, this one reads and looks at nothing: no protocol, no server.
Run as a module it is the sender: PORT, BYTES.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

from brim import guard, layout
from brim.errors import NotReady

HOST = "127.0.0.1"
#: Long enough for TCP's windows to have grown and for a hundred turns of the scheduler, short enough to do at each run.
WARM_UP_S, MEASURE_S = 0.1, 0.5
#: A fresh interpreter on a busy machine takes a second.
CONNECT_S = 10.0
READ_BYTES = 1 << 20


def copy_rate(payload_bytes: int) -> float | None:
    """Bytes/s of a loopback copy in pieces of `payload_bytes`; None if it cannot be measured. Takes about a second."""
    try:
        with socket.create_server((HOST, 0)) as listener:
            listener.settimeout(CONNECT_S)
            with _sender(listener.getsockname()[1], payload_bytes) as sender:
                try:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(CONNECT_S)
                        return _received(connection)
                finally:
                    sender.kill()
    except OSError:
        return None


def _sender(port: int, payload_bytes: int) -> subprocess.Popen[bytes]:
    """This module in a process of its own, which ends when the connection does."""
    command = [sys.executable, "-P", "-m", "loadtest.loopback", str(port), str(payload_bytes)]
    environment = {**os.environ, "PYTHONPATH": str(layout.CHECKOUT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def _received(connection: socket.socket) -> float | None:
    """Bytes/s that arrive, once they flow; None if they stop."""
    buffer = memoryview(bytearray(READ_BYTES))
    begin_s, start_s, received = time.perf_counter(), None, 0
    while True:
        got = connection.recv_into(buffer)
        now_s = time.perf_counter()
        if not got:
            return None
        if start_s is None:
            if now_s - begin_s >= WARM_UP_S:
                start_s = now_s
            continue
        received += got
        if now_s - start_s >= MEASURE_S:
            return received / (now_s - start_s)


def _send(port: int, payload_bytes: int) -> None:
    """Send until the reader closes the connection."""
    payload = bytes(payload_bytes)
    with contextlib.suppress(OSError, NotReady), guard.connect(HOST, port, {}, timeout_s=CONNECT_S) as connection:
        while True:
            connection.sendall(payload)


if __name__ == "__main__":
    _send(int(sys.argv[1]), int(sys.argv[2]))
