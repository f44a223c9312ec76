"""Tensors to the bytes of a KServe v2 request with the binary tensor extension, and a body's bytes back to tensors.

Pure: reads and writes nothing. The protocol: a JSON head whose length travels in `Inference-Header-Content-Length`,
then the tensors one after another, little endian, row-major; each BYTES element behind its length in 4 bytes. A tensor
that lies in shared memory is not in the body: the head names its place.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from brim.errors import UsageError, did_you_mean
from brim.records import Tensor

_LENGTH = struct.Struct("<I")
GZIP_LEVEL = 6  # beyond it, only preparing takes longer

#: What holds each dtype in memory; BF16 has no numpy type and stays in its 16 raw bits.
NUMPY = {
    "BOOL": np.dtype("?"), "INT8": np.dtype("i1"), "UINT8": np.dtype("u1"),
    "INT16": np.dtype("<i2"), "UINT16": np.dtype("<u2"), "FP16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "INT32": np.dtype("<i4"), "UINT32": np.dtype("<u4"), "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"), "UINT64": np.dtype("<u8"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip


def numpy_dtype(dtype: str, where: str) -> np.dtype[Any]:
    """The numpy type of a Triton dtype; UsageError if Brim cannot send it."""
    if dtype not in NUMPY:
        raise UsageError(f"{where}: dtype {dtype} cannot be sent; {did_you_mean(dtype, NUMPY)}")
    return NUMPY[dtype]


def wire(array: np.ndarray, dtype: str) -> bytes:
    """One tensor as it travels."""
    if dtype == "BYTES":
        elements = [bytes(e) for e in array.reshape(-1)]
        return b"".join(_LENGTH.pack(len(e)) + e for e in elements)
    return np.ascontiguousarray(array, NUMPY[dtype]).tobytes()


def unwire(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor that travelled as `data`; ValueError if its length does not fit dtype and shape."""
    if dtype != "BYTES":
        return np.frombuffer(data, NUMPY[dtype]).reshape(shape)
    elements, at = [], 0
    while at < len(data):
        if at + 4 > len(data) or at + 4 + _LENGTH.unpack_from(data, at)[0] > len(data):
            raise ValueError("a BYTES element is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        elements.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    flat = np.empty(len(elements), object)
    flat[:] = elements
    return flat.reshape(shape)


def infer_path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}/infer" if version else f"{path}/infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Where in a registered shared-memory region a tensor lies."""

    region: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of a request: name, dtype and shape as sent, and its bytes or the place that holds them."""

    tensor: Tensor
    data: bytes | Part


def infer_body(inputs: Sequence[Input], outputs: Sequence[str]) -> tuple[bytes, int]:
    """The body of an inference request that wants every output in binary, and the length of its JSON head."""
    head = {
        "inputs": [
            {
                "name": given.tensor.name,
                "shape": list(given.tensor.shape),
                "datatype": given.tensor.dtype,
                "parameters": _parameters(given.data),
            }
            for given in inputs
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([text, *(given.data for given in inputs if isinstance(given.data, bytes))]), len(text)


def _parameters(data: bytes | Part) -> dict[str, str | int]:
    if isinstance(data, bytes):
        return {"binary_data_size": len(data)}
    told: dict[str, str | int] = {"shared_memory_region": data.region, "shared_memory_byte_size": data.byte_size}
    return {**told, "shared_memory_offset": data.offset} if data.offset else told


def infer_request(
    netloc: str, path: str, body: bytes, json_bytes: int, compression: Literal["none", "gzip"] = "none"
) -> bytes:
    """The whole HTTP/1.1 request, ready for a socket; `json_bytes` is of the body before its compression."""
    encoding = ""
    if compression == "gzip":
        body, encoding = gzip.compress(body, GZIP_LEVEL, mtime=0), "Content-Encoding: gzip\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {netloc}\r\nUser-Agent: brim\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {json_bytes}\r\n{encoding}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def read_tensors(body: bytes, json_bytes: int, key: str) -> dict[str, np.ndarray]:
    """The tensors under `key` (inputs or outputs) of a binary body; ValueError if it does not hold together."""
    head, rest, at, tensors = json.loads(body[:json_bytes]), memoryview(body)[json_bytes:], 0, {}
    for entry in head[key]:
        size = entry["parameters"]["binary_data_size"]
        if at + size > len(rest):
            raise ValueError(f"{entry['name']}: {size} bytes announced, {len(rest) - at} there")
        tensors[entry["name"]] = unwire(rest[at : at + size], entry["datatype"], entry["shape"])
        at += size
    if at != len(rest):
        raise ValueError(f"{len(rest) - at} bytes more than the tensors announced")
    return tensors
