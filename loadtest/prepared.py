"""The record of a prepared payload: what a sender reads to send it and to know a good answer.

payload.json in the payload's folder; standard library only, because every sender process imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brim import disk
from brim.records import ELEMENT_BYTES, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One request of the pool: its file, and one .npy per input in the order of the payload's inputs."""

    request: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A shared-memory region that the parent made and registered with the server before any sender starts."""

    name: str  # as it is registered
    key: str  # what the server opens: the file /dev/shm<key>; empty for CUDA
    byte_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A pool of requests that differ only in their data."""

    url: str
    model: str
    version: str
    items_per_request: int
    source: str  # random:<seed>, or where the user's data came from
    inputs: tuple[Tensor, ...]  # shapes as sent, batch dimension included
    outputs: tuple[Tensor, ...]  # shapes as expected, batch dimension included, -1 = any
    members: tuple[Member, ...]
    request_bytes: int  # of the largest member on the wire, head included
    protocol: Literal["http", "grpc"] = "http"  # a request file holds an HTTP request, or a ModelInferRequest
    compression: Literal["none", "gzip"] = "none"
    regions: tuple[Region, ...] = ()  # where inputs travel through shared memory


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor on the wire, or None if its dtype or shape leaves that open."""
    size = ELEMENT_BYTES.get(dtype)
    if size is None or any(d < 0 for d in shape):
        return None
    for d in shape:
        size *= d
    return size


def payload_file(folder: Path) -> Path:
    return folder / "payload.json"


def load(folder: Path) -> Payload:
    """The payload in a folder; NotReady if nothing was prepared there."""
    return disk.load(Payload, payload_file(folder))
