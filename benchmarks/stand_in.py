"""A stand-in for a server: it answers every inference request with the same bytes and computes nothing.

`python -m benchmarks.stand_in PARENT_PID` prints its port and serves on loopback until its parent ends. It shows what
senders can do where no server limits them, and says nothing of Triton. Requests must arrive whole: it looks at their
length alone. Its statistics are its own count of answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from brim import layout
from brim.offspring import die_with
from brim.records import Target, Tensor

MODEL, ELEMENTS = "stand_in", 16
SMALL_REQUEST_BYTES = 2**14  # far more than a request of so few elements takes


def main(argv: list[str]) -> int:
    """Serve until the parent has ended."""
    die_with(int(argv[0]))
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        print(listener.getsockname()[1], flush=True)
        _serve(listener)
    return 0


def _serve(listener: socket.socket) -> None:
    """One request after another, as they come: the least work that keeps the protocol."""
    answer, answered = _inference_answer(), 0
    connections: dict[int, socket.socket] = {}
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            connection = connections.get(number)
            if connection is None:
                opened, _ = listener.accept()
                connections[opened.fileno()] = opened
                poll.register(opened, select.EPOLLIN)
                continue
            with contextlib.suppress(ConnectionError):
                request = connection.recv(SMALL_REQUEST_BYTES)
                if request.startswith(b"POST"):
                    answered += 1
                    connection.send(answer)
                    continue
                if request.startswith(b"GET"):
                    connection.send(_statistics(answered))
                    continue
            connections.pop(number).close()


def _inference_answer() -> bytes:
    data = struct.pack(f"<{ELEMENTS}f", *range(ELEMENTS))
    output = {
        "name": "OUTPUT",
        "datatype": "FP32",
        "shape": [1, ELEMENTS],
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"model_name": MODEL, "model_version": "1", "outputs": [output]}).encode()
    return _http(head + data, f"Inference-Header-Content-Length: {len(head)}\r\n")


def _statistics(answered: int) -> bytes:
    none = {"count": 0, "ns": 0}
    entry = {
        "name": MODEL,
        "version": "1",
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": {"success": {"count": answered, "ns": 0}, "fail": none, "queue": none},
        "batch_stats": [],
    }
    return _http(json.dumps({"model_stats": [entry]}).encode(), "")


def _http(body: bytes, headers: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def running(log: Path) -> Iterator[Target]:
    """A stand-in in a process of its own, and what it is to whoever sends to it."""
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.stand_in", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=layout.CHECKOUT,
            env={"PYTHONPATH": str(layout.CHECKOUT), "PATH": ""},
            text=True,
        )
    assert child.stdout is not None  # it was opened as a pipe
    try:
        yield _target(int(child.stdout.readline()))
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def _target(port: int) -> Target:
    tensor = (ELEMENTS,)
    return Target(
        url=f"http://127.0.0.1:{port}",
        model=MODEL,
        version="",
        inputs=(Tensor(name="INPUT", dtype="FP32", shape=tensor),),
        outputs=(Tensor(name="OUTPUT", dtype="FP32", shape=tensor),),
        max_batch=1,
        instances=1,
        server_name="stand_in",
        server_version="",
        item="items",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
