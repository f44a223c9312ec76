"""Servers of known capacity: what each takes and gives. Reads serve/models/<kind>.py for its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from brim.errors import UsageError, did_you_mean
from brim.records import KnownServer, Tensor

Kind = Literal["null", "image", "sleep"]

MODELS = Path(__file__).with_name("models")

#: kind -> its parameters and their defaults. 224 pixels a side: the article's pictures, 602,112 bytes each.
KINDS: dict[str, dict[str, float]] = {
    "null": {"elements": 16},
    "image": {"pixels": 224, "bits": 32},
    "sleep": {"elements": 16, "service_ms": 10},
}
#: Bits of one number of an image -> its dtype.
IMAGE_DTYPES = {8: "UINT8", 16: "FP16", 32: "FP32"}
LONGEST_SERVICE_MS = 60_000  # a batch that takes longer than the longest window says nothing
LARGEST = {"elements": 1 << 20, "pixels": 4096}  # 4 and 201 MB an item: beyond, the server's shared memory is the limit


def known_server(kind: str, parameters: Mapping[str, float]) -> KnownServer:
    """The known server of that kind; what `parameters` does not name keeps its default."""
    if kind not in KINDS:
        raise UsageError(f"there is no known server {kind!r}; {did_you_mean(kind, KINDS)}")
    values = {name: float(value) for name, value in {**KINDS[kind], **parameters}.items()}
    for name, value in values.items():
        _check_parameter(kind, name, value)
    return KnownServer(
        kind=cast(Kind, kind),
        parameters=values,
        inputs=(_input(values),),
        outputs=(_fp32("OUTPUT", 1),) if kind == "image" else (_fp32("OUTPUT", values["elements"]),),
        digest=digest(kind),
    )


def _check_parameter(kind: str, name: str, value: float) -> None:
    if name not in KINDS[kind]:
        raise UsageError(f"{kind} has no parameter {name!r}; {did_you_mean(name, KINDS[kind])}")
    if name == "service_ms" and not 0 < value <= LONGEST_SERVICE_MS:
        raise UsageError(f"{kind}: service_ms is {value:g}, must be above 0 and at most {LONGEST_SERVICE_MS}")
    if name in LARGEST and not (1 <= value <= LARGEST[name] and value == int(value)):
        raise UsageError(f"{kind}: {name} is {value:g}, must be a whole number from 1 to {LARGEST[name]}")
    if name == "bits" and value not in IMAGE_DTYPES:
        raise UsageError(f"{kind}: bits is {value:g}, must be 8 (UINT8), 16 (FP16) or 32 (FP32)")


def _input(values: Mapping[str, float]) -> Tensor:
    if "pixels" in values:
        side = int(values["pixels"])
        return Tensor(name="INPUT", dtype=IMAGE_DTYPES[int(values["bits"])], shape=(3, side, side))
    return _fp32("INPUT", values["elements"])


def _fp32(name: str, size: float) -> Tensor:
    return Tensor(name=name, dtype="FP32", shape=(int(size),))


def digest(kind: str) -> str:
    """Of all that decides what the server does: its own module and the one that every model shares."""
    content = b"".join((MODELS / name).read_bytes() for name in (f"{kind}.py", "stub.py"))
    return hashlib.sha256(content).hexdigest()
