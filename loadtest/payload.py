"""What is sent: a pool of distinct requests, each written once as the bytes of a whole HTTP request.

Reads the user's `--input-data`, if any (loadtest.input_data); writes the payload's folder: requests, their inputs
as .npy, payload.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from brim import disk, guard
from brim.errors import UsageError
from brim.records import Target, Tensor
from loadtest import input_data as given
from loadtest import prepared, request_bytes
from loadtest.prepared import Member, Payload

Item = Mapping[str, np.ndarray]

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
) -> Path:
    """Write the pool of requests for one load point and give its folder; UsageError if the data do not fit."""
    check_items(target, items_per_request)
    item_bytes = max(1, _item_bytes(target))
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
    return _write(target, disk.make_folder(folder), items, count, items_per_request, source)


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


def _item_bytes(target: Target) -> int:
    return sum(prepared.tensor_bytes(t.dtype, t.shape) or 0 for t in target.inputs)


def _write(
    target: Target, folder: Path, items: Iterator[Item], count: int, items_per_request: int, source: str
) -> Path:
    endpoint = guard.parse_url(target.url)
    path = request_bytes.infer_path(target.model, target.version)
    batch = (items_per_request,) if target.max_batch else ()
    inputs = tuple(Tensor(name=t.name, dtype=t.dtype, shape=batch + t.shape) for t in target.inputs)
    members, largest = [], 0
    for number in range(count):
        chosen = [next(items) for _ in range(items_per_request)]
        arrays = [_batched([item[t.name] for item in chosen], bool(batch)) for t in inputs]
        body, head = request_bytes.infer_body(list(zip(inputs, arrays, strict=True)), [t.name for t in target.outputs])
        request = request_bytes.infer_request(endpoint.netloc, path, body, head)
        members.append(_write_member(folder, number, request, inputs, arrays))
        largest = max(largest, len(request))
    disk.save(
        prepared.payload_file(folder),
        Payload(
            url=endpoint.url,
            model=target.model,
            version=target.version,
            items_per_request=items_per_request,
            source=source,
            inputs=inputs,
            outputs=tuple(Tensor(name=t.name, dtype=t.dtype, shape=batch + t.shape) for t in target.outputs),
            members=tuple(members),
            request_bytes=largest,
        ),
    )
    return folder


def _batched(arrays: Sequence[np.ndarray], stack: bool) -> np.ndarray:
    return np.stack(arrays) if stack else arrays[0]


def _write_member(
    folder: Path, number: int, request: bytes, inputs: Sequence[Tensor], arrays: Sequence[np.ndarray]
) -> Member:
    member = Member(
        request=f"request-{number}.http", inputs=tuple(f"input-{number}-{j}.npy" for j in range(len(inputs)))
    )
    with disk.told(folder):
        (folder / member.request).write_bytes(request)
        for tensor, array, file in zip(inputs, arrays, member.inputs, strict=True):
            # numpy keeps objects only by pickle, which Brim never reads: BYTES are stored as they travel
            is_bytes = tensor.dtype == "BYTES"
            stored = np.frombuffer(request_bytes.wire(array, "BYTES"), np.uint8) if is_bytes else array
            np.save(folder / file, stored, allow_pickle=False)
    return member
