"""A bare asyncio sender, whose lateness Brim's is compared with: `python -m benchmarks.truth.bare_sender SPEC PARENT`.

It sleeps until each instant and writes a prepared request to an idle connection, and records nothing but when. Reads
the spec of a load; writes sent.npy (int64 ns, intended and sent) into its folder.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brim import disk, guard, layout
from brim.offspring import die_with
from loadtest import prepared
from loadtest.driver import LoadSpec

SENT = "sent.npy"
LEAD_NS = 200_000_000
END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One request in flight; free again when its answer is there."""

    def __init__(self, free: deque[Connection]) -> None:
        self._free, self._answer = free, bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._free.append(self)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = bytes(self._answer).partition(END)
        if found and len(body) >= _length(head):
            self._answer.clear()
            self._free.append(self)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def send(spec: LoadSpec) -> npt.NDArray[np.int64]:
    """When each request was due and sent."""
    place, loop = guard.parse_url(spec.url), asyncio.get_running_loop()
    guard.judge(place.host, place.port, {})
    folder = Path(spec.payload)
    requests = [(folder / member.request).read_bytes() for member in prepared.load(folder).members]
    free: deque[Connection] = deque()
    for _ in range(spec.point.slots):
        await loop.create_connection(lambda: Connection(free), place.host, place.port)
    offsets = np.load(str(spec.arrivals), allow_pickle=False).tolist()
    sent_ns = np.zeros((len(offsets), 2), np.int64)
    gc.collect()
    gc.freeze()
    start_ns = time.monotonic_ns() + LEAD_NS
    for number, offset in enumerate(offsets):
        due_ns = start_ns + offset
        while (left_ns := due_ns - time.monotonic_ns()) > 0 or not free:
            await asyncio.sleep(max(0, left_ns) / 1e9)
        connection = free.pop()
        assert connection.transport is not None  # it is free, so it is open
        connection.transport.write(requests[number % len(requests)])
        sent_ns[number] = due_ns, time.monotonic_ns()
    await asyncio.sleep(1.0)  # the last answers
    return sent_ns


def lag_ms(spec: LoadSpec, spec_file: Path, *, limit_s: float) -> npt.NDArray[np.float64]:
    """Send the load in a process of its own: how late each request was, ms.

    subprocess.SubprocessError if it does not come to its end, which names it and fails the part.
    """
    command = [sys.executable, "-m", "benchmarks.truth.bare_sender", str(spec_file), str(os.getpid())]
    subprocess.run(command, cwd=layout.CHECKOUT, check=True, timeout=limit_s)
    sent_ns = np.load(Path(spec.folder) / SENT, allow_pickle=False)
    late: npt.NDArray[np.float64] = (sent_ns[:, 1] - sent_ns[:, 0]) / 1e6
    return late


def main(arguments: list[str]) -> int:
    """One load, to its end."""
    die_with(int(arguments[1]))
    spec = disk.load(LoadSpec, Path(arguments[0]))
    np.save(Path(spec.folder) / SENT, asyncio.run(send(spec)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
