"""What is sent: a pool of distinct requests, each written once as the bytes that a sender hands over.

Reads the user's `--input-data`, if any (loadtest.input_data); writes the payload's folder: requests (whole HTTP ones,
or ModelInferRequest messages), their inputs as .npy, payload.json. Where inputs travel through shared memory, it puts
those of the whole pool into one region, which requests of all senders share: a server only reads it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from brim import disk, guard
from brim.errors import UsageError
from brim.guard import Endpoint
from brim.records import Protocol, Target, Tensor
from loadtest import input_data as given
from loadtest import prepared, request_bytes
from loadtest.prepared import Member, Payload, Region
from loadtest.regions import Memory
from loadtest.request_bytes import Input, Part

Item = Mapping[str, np.ndarray]
Compression = Literal["none", "gzip"]

#: A sender holds the whole pool in memory; a pool of random data shrinks to this, the user's own is refused above it.
POOL_BYTES = 256 * 2**20
ROW_ITEMS_MAX = 2**16 - 1  # a row keeps the items of a request in 16 bits


def prepare(
    target: Target,
    folder: Path,
    *,
    items_per_request: int,
    input_data: str | None,
    seed: int,
    pool: int = 16,
    protocol: Protocol = "http",
    compression: Compression = "none",
    memory: Memory | None = None,
) -> Path:
    """Write the pool of requests for one load point and give its folder; UsageError if the data do not fit.

    With `memory` (from loadtest.regions.opened) the inputs lie there, and not in the requests.
    """
    check_items(target, items_per_request)
    item_bytes = max(1, _item_bytes(target))
    if protocol == "grpc" and memory is None:
        from loadtest import grpc_requests  # half a second, which only gRPC need pay

        grpc_requests.check_size(target.model, items_per_request * item_bytes)
    if input_data is None:
        count = max(1, min(pool, POOL_BYTES // (item_bytes * items_per_request)))
        items = random_items(target.inputs, seed, count * items_per_request)
        source = f"random:{seed}"
    else:
        loaded = given.load(Path(input_data), target)
        count = -(-len(loaded) // items_per_request)
        if count * items_per_request * item_bytes > POOL_BYTES:
            raise UsageError(
                f"--input-data {input_data}: more than {POOL_BYTES >> 20} MiB of requests; the sender keeps them in "
                f"memory, give fewer items"
            )
        items = (loaded[i % len(loaded)] for i in range(count * items_per_request))
        source = str(input_data)
    batch = (items_per_request,) if target.max_batch else ()
    form = _Form(
        endpoint=guard.parse_url(target.url), model=target.model, version=target.version, protocol=protocol,
        compression=compression, inputs=_as_sent(target.inputs, batch), outputs=_as_sent(target.outputs, batch),
    )  # fmt: skip
    return _write(form, disk.make_folder(folder), items, count, items_per_request, source, memory)


def check_items(target: Target, items_per_request: int) -> None:
    """UsageError if the model does not take that many items in one request."""
    most = min(max(1, target.max_batch), ROW_ITEMS_MAX)
    if items_per_request > most:
        why = f"its max_batch is {target.max_batch}" if target.max_batch else "it does not batch"
        raise UsageError(
            f"payload larger than max_batch: {items_per_request} items per request for {target.model}, but {why}; "
            f"use at most {most}"
        )


def random_items(inputs: Sequence[Tensor], seed: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """`count` items of seeded random data, each input drawn by its dtype."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {t.name: random_array(rng, t.dtype, t.shape, t.name) for t in inputs}


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Floats in [0, 1), bytes over their whole range, other integers small (they are often indices), short strings."""
    kind = request_bytes.numpy_dtype(dtype, name)
    if dtype == "BYTES":
        letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
        array = np.empty(int(np.prod(shape, dtype=np.int64)), object)
        array[:] = [bytes(rng.choice(letters, int(rng.integers(4, 17)))) for _ in range(array.size)]
        return array.reshape(shape)
    if dtype == "BF16":  # the upper half of an FP32 is its BF16, rounded towards zero
        return (rng.random(shape, np.float32).view(np.uint32) >> 16).astype(kind)
    if dtype in ("FP32", "FP64"):
        return np.asarray(rng.random(shape, kind.type))
    if dtype == "FP16":  # floor to 2^-11 keeps it below 1, which rounding would not
        return (np.floor(rng.random(shape) * 2048) / 2048).astype(kind)
    if dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(kind)
    return rng.integers(0, 256 if dtype == "UINT8" else 100, shape).astype(kind)


def read_inputs(folder: Path, member: int) -> dict[str, np.ndarray]:
    """The inputs of one request of the pool, batch dimension included (BF16 in its raw bits, BYTES as objects)."""
    payload = prepared.load(folder)
    arrays = {}
    for tensor, file in zip(payload.inputs, payload.members[member].inputs, strict=True):
        stored = np.load(folder / file, allow_pickle=False)
        is_bytes = tensor.dtype == "BYTES"
        arrays[tensor.name] = request_bytes.unwire(stored.tobytes(), "BYTES", tensor.shape) if is_bytes else stored
    return arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How one pool's requests are written."""

    endpoint: Endpoint
    model: str
    version: str
    protocol: Protocol
    compression: Compression
    inputs: tuple[Tensor, ...]  # shapes as sent
    outputs: tuple[Tensor, ...]

    def request(self, data: Sequence[bytes | Part]) -> bytes:
        inputs = [Input(tensor=tensor, data=given) for tensor, given in zip(self.inputs, data, strict=True)]
        outputs = [t.name for t in self.outputs]
        if self.protocol == "grpc":
            from loadtest import grpc_requests

            return grpc_requests.infer_message(self.model, self.version, inputs, outputs)
        path = request_bytes.infer_path(self.model, self.version)
        body, json_bytes = request_bytes.infer_body(inputs, outputs)
        return request_bytes.infer_request(self.endpoint.netloc, path, body, json_bytes, self.compression)

    def wire_bytes(self, request: bytes) -> int:
        """What it puts on the wire: gRPC compresses by itself, and only where that is shorter."""
        if self.protocol == "grpc" and self.compression == "gzip":
            return min(len(request), len(gzip.compress(request, request_bytes.GZIP_LEVEL)))
        return len(request)


def _item_bytes(target: Target) -> int:
    return sum(prepared.tensor_bytes(t.dtype, t.shape) or 0 for t in target.inputs)


def _as_sent(tensors: Sequence[Tensor], batch: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name=t.name, dtype=t.dtype, shape=batch + t.shape) for t in tensors)


def _write(
    form: _Form,
    folder: Path,
    items: Iterator[Item],
    count: int,
    items_per_request: int,
    source: str,
    memory: Memory | None,
) -> Path:
    names, tensors = [], []
    for number in range(count):
        chosen = [next(items) for _ in range(items_per_request)]
        for j, tensor in enumerate(form.inputs):
            arrays = [item[tensor.name] for item in chosen]
            array = np.stack(arrays) if len(tensor.shape) > arrays[0].ndim else arrays[0]
            tensors.append(request_bytes.wire(array, tensor.dtype))
            names.append(_write_input(folder / f"input-{number}-{j}.npy", tensor.dtype, array, tensors[-1]))
    regions, data = _placed(tensors, memory)
    each = len(form.inputs)
    members, largest = [], 0
    for number in range(count):
        mine = slice(number * each, (number + 1) * each)
        request = form.request(data[mine])
        members.append(Member(request=f"request-{number}.{form.protocol}", inputs=tuple(names[mine])))
        with disk.told(folder):
            (folder / members[-1].request).write_bytes(request)
        largest = max(largest, form.wire_bytes(request))
    made = Payload(
        url=form.endpoint.url, model=form.model, version=form.version, items_per_request=items_per_request,
        source=source, inputs=form.inputs, outputs=form.outputs, members=tuple(members), request_bytes=largest,
        protocol=form.protocol, compression=form.compression, regions=regions,
    )  # fmt: skip
    disk.save(prepared.payload_file(folder), made)
    return folder


def _write_input(file: Path, dtype: str, array: np.ndarray, wire: bytes) -> str:
    # numpy keeps objects only by pickle, which Brim never reads: BYTES are stored as they travel
    with disk.told(file):
        np.save(file, np.frombuffer(wire, np.uint8) if dtype == "BYTES" else array, allow_pickle=False)
    return file.name


def _placed(tensors: Sequence[bytes], memory: Memory | None) -> tuple[tuple[Region, ...], Sequence[bytes | Part]]:
    if memory is None:
        return (), tensors
    region, parts = memory.hold(tensors)
    return (region,), parts
