"""A small KServe v2 server of known behaviour: the oracle of the tests of whatever sends, and its tormentor.

It listens on loopback, serves one model whose every output element is the first element of the item's first input,
has a known capacity (`slots` requests at a time, each taking `service_s`), keeps a log of every inference request, and
misbehaves on demand.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from brim.records import Tensor

Fault = Literal[
    "",  # a good answer
    "last",  # a good answer that announces the end of the connection, and the end
    "queue_full",  # 503 in Triton's words
    "reset",  # RST instead of an answer
    "close",  # an orderly end instead of an answer
    "garbage",  # not HTTP
    "truncated",  # half the body, then the end
    "error_200",  # status 200, but an error as JSON
    "wrong_shape",
    "wrong_dtype",
    "short_output",  # fewer bytes than shape and dtype need
    "server_error",  # 500 with control characters in its text
    "slow",  # one byte every 20 ms
    "never",  # no answer at all
    "redirect",
    "echo",  # 500, and the text repeats the request's Authorization header
]

QUEUE_FULL = "[request id: <id_unknown>] Exceeds maximum queue size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One inference request as the server saw it."""

    received_ns: int
    answered_ns: int
    items: int
    fault: str
    body: bytes


@dataclass
class FakeServer:
    """Use it as a context manager; `fault` is asked for every inference request by its ordinal, from 0."""

    model: str = "tiny"
    inputs: Sequence[Tensor] = (Tensor(name="x", dtype="FP32", shape=(4,)),)
    outputs: Sequence[Tensor] = (Tensor(name="y", dtype="FP32", shape=(2,)),)
    max_batch: int = 8
    instances: int = 1
    service_s: float = 0.0
    slots: int = 64
    ready: bool = True
    reason: str = ""
    fault: Callable[[int], Fault] = field(default=lambda ordinal: "")
    echo: bool = False  # what it says of itself, and why it refuses a question, repeats the Authorization header
    log: list[Served] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def faults(self) -> Counter[str]:
        """How many requests got which answer."""
        return Counter(entry.fault for entry in self.log)

    @property
    def items(self) -> int:
        """Items inferred: what the statistics of a real server count."""
        return sum(entry.items for entry in self.log if entry.fault != "queue_full")

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(self.slots)
        self._writers: set[asyncio.StreamWriter] = set()
        self._ordinal = 0
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20, backlog=1024)
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake server")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Die: refuse connections, reset the open ones."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        own = asyncio.current_task()
        tasks = [t for t in asyncio.all_tasks() if t is not own]
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection must end."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        path = line.split(" ")[1]
        if path.endswith("/infer"):
            return await self._infer(writer, body, headers)
        status, answer = self._control(path)
        if self.echo and isinstance(answer, dict):
            said = headers.get("authorization", "")
            answer |= {key: answer[key] + said for key in ("version", "error") if key in answer}
        await _write(writer, _answer(status, json.dumps(answer).encode()))
        return True

    def _control(self, path: str) -> tuple[int, Any]:
        model = f"/v2/models/{self.model}"
        if path == "/v2":
            return 200, {"name": "fake", "version": "0", "extensions": ["statistics"]}
        if path in ("/v2/health/live", "/v2/health/ready"):
            return 200, {}
        if path == "/v2/repository/index":
            state = "READY" if self.ready else "UNAVAILABLE"
            return 200, [{"name": self.model, "version": "1", "state": state, "reason": self.reason}]
        if path == f"{model}/ready":
            return (200, {}) if self.ready else (400, {})
        if path == model and self.ready:
            return 200, {"name": self.model, "inputs": self._told(self.inputs), "outputs": self._told(self.outputs)}
        if path == f"{model}/config" and self.ready:
            group = [{"count": self.instances}]
            return 200, {"name": self.model, "max_batch_size": self.max_batch, "instance_group": group}
        if path == f"{model}/stats" and self.ready:
            return 200, {"model_stats": [self._statistics()]}
        return 400, {"error": f"Request for unknown model: {path} is not found"}

    def _told(self, tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        batch = [-1] if self.max_batch else []
        return [{"name": t.name, "datatype": t.dtype, "shape": batch + list(t.shape)} for t in tensors]

    def _statistics(self) -> dict[str, Any]:
        ok = [entry for entry in self.log if entry.fault != "queue_full"]
        spent = {"count": len(ok), "ns": sum(e.answered_ns - e.received_ns for e in ok)}
        none = {"count": 0, "ns": 0}
        return {
            "name": self.model,
            "inference_count": self.items,
            "execution_count": len(ok),
            "inference_stats": {"success": spent, "fail": none, "queue": none, "compute_infer": spent},
            "batch_stats": [
                {"batch_size": n, "compute_input": none, "compute_infer": {"count": c, "ns": 0}, "compute_output": none}
                for n, c in Counter(e.items for e in ok).items()
            ],
        }

    async def _infer(self, writer: asyncio.StreamWriter, body: bytes, headers: Mapping[str, str]) -> bool:
        json_bytes = int(headers["inference-header-content-length"])
        received_ns, ordinal = time.monotonic_ns(), self._ordinal
        self._ordinal += 1
        fault = self.fault(ordinal)
        asked = json.loads(body[:json_bytes])["inputs"][0]
        items = int(asked["shape"][0]) if self.max_batch else 1
        if fault != "queue_full":
            async with self._slots:
                if self.service_s:
                    await asyncio.sleep(self.service_s)
        self.log.append(
            Served(received_ns=received_ns, answered_ns=time.monotonic_ns(), items=items, fault=fault, body=body)
        )
        good = self._good(body, json_bytes, asked, items, fault)
        if fault == "echo":
            good = _answer(500, json.dumps({"error": f"who is {headers.get('authorization', 'it')}?"}).encode())
        return await self._reply(writer, fault, good)

    def _good(self, body: bytes, json_bytes: int, asked: dict[str, Any], items: int, fault: Fault) -> bytes:
        """A whole answer, except for what a fault changes in its JSON head."""
        firsts = np.zeros(items, np.float32)
        if asked["datatype"] == "FP32":
            size = asked["parameters"]["binary_data_size"]
            firsts = np.frombuffer(body, np.float32, size // 4, json_bytes).reshape(items, -1)[:, 0]
        head, tensors = [], []
        for t in self.outputs:
            shape = [*([items] if self.max_batch else []), *(abs(d) for d in t.shape)]
            data = _filled(t.dtype, firsts, math.prod(shape) // items)
            if fault == "short_output":
                data = data[:-4]
            head.append(
                {
                    "name": t.name,
                    "datatype": "INT32" if fault == "wrong_dtype" else t.dtype,
                    "shape": [1, *shape] if fault == "wrong_shape" else shape,
                    "parameters": {"binary_data_size": len(data)},
                }
            )
            tensors.append(data)
        text = json.dumps({"model_name": self.model, "model_version": "1", "outputs": head}).encode()
        return _answer(200, b"".join([text, *tensors]), json_bytes=len(text))

    async def _reply(self, writer: asyncio.StreamWriter, fault: Fault, good: bytes) -> bool:
        if fault == "never":
            await asyncio.sleep(3600)
        if fault == "slow":
            for i in range(len(good)):
                await _write(writer, good[i : i + 1])
                await asyncio.sleep(0.02)
            return True
        if fault == "reset":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        await _write(writer, _faulty(fault, good))
        return fault not in ("last", "close", "truncated", "garbage")


def _filled(dtype: str, firsts: np.ndarray, each: int) -> bytes:
    if dtype == "BYTES":
        element = b"\x05\x00\x00\x00a\x00b\xffc"
        return element * (each * len(firsts))
    return np.repeat(firsts, each).astype({"FP32": np.float32, "INT64": np.int64}[dtype]).tobytes()


def _faulty(fault: Fault, good: bytes) -> bytes:
    """The bytes that a fault puts in the place of a good answer."""
    return {
        "queue_full": _answer(503, json.dumps({"error": QUEUE_FULL}).encode()),
        "error_200": _answer(200, b'{"error":"it went wrong"}'),
        "server_error": _answer(500, json.dumps({"error": "\x1b[31mred\x1b[0m\r\n" + "x" * 500}).encode()),
        "redirect": _answer(302, b"", extra="Location: http://203.0.113.1/\r\n"),
        "garbage": b"\x00\x01\x02 what is this\r\n\r\n",
        "last": good.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
        "truncated": good[:-3],
        "close": b"",
    }.get(fault, good)


def _answer(status: int, body: bytes, *, json_bytes: int | None = None, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/octet-stream\r\n{extra}"
    if json_bytes is not None:
        head += f"Inference-Header-Content-Length: {json_bytes}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
