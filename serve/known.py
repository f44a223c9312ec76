"""Servers of known capacity: what each takes and gives. Reads serve/models/<kind>.py for its digest."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from brim.errors import UsageError, did_you_mean
from brim.records import KnownKind, KnownServer, ServingConfig, Tensor

MODELS = Path(__file__).with_name("models")

#: kind -> its parameters and their defaults. 224 pixels a side: the article's pictures, 602,112 bytes each.
KINDS: dict[str, dict[str, float]] = {
    "null": {"elements": 16},
    "image": {"pixels": 224, "bits": 32},
    "sleep": {"elements": 16, "service_ms": 10},
    "affine": {"elements": 16, "tau0_ms": 10, "alpha_ms": 1},
    "exponential": {"elements": 16, "service_ms": 10, "seed": 1},
    "contended": {"elements": 16, "service_ms": 10},
    "optimum": {"elements": 16, "tau0_ms": 10, "alpha_ms": 1, "best": 2},
    "stall": {"elements": 16, "service_ms": 10, "at_s": 5, "stall_ms": 1000},
    "reject": {"elements": 16, "service_ms": 10, "queue": 16},
}
#: Models that answer as soon as they can; the other ones share timed.py.
UNTIMED = ("null", "image", "engine")
#: Bits of one number of an image -> its dtype.
IMAGE_DTYPES = {8: "UINT8", 16: "FP16", 32: "FP32"}
LONGEST_MS = 60_000  # a batch that takes longer than the longest window says nothing
LONGEST_S = 86_400  # until a freeze: no measurement takes a day
#: Parameters that are whole numbers -> smallest and largest.
WHOLE = {
    "elements": (1, 1 << 20),  # 4 MB an item, and 201 MB of pixels: beyond, the server's shared memory is the limit
    "pixels": (1, 4096),
    "best": (1, 4096),
    "seed": (0, 2**31 - 1),
    "queue": (1, 2**31 - 1),  # Triton keeps it in 32 bits
}


def known_server(kind: str, parameters: Mapping[str, float]) -> KnownServer:
    """The known server of that kind; what `parameters` does not name keeps its default."""
    if kind not in KINDS:
        raise UsageError(f"there is no known server {kind!r}; {did_you_mean(kind, KINDS)}")
    values = {name: float(value) for name, value in {**KINDS[kind], **parameters}.items()}
    for name, value in values.items():
        _check_parameter(kind, name, value)
    return KnownServer(
        kind=cast(KnownKind, kind),
        parameters=values,
        inputs=(_input(values),),
        outputs=(_fp32("OUTPUT", 1),) if kind == "image" else (_fp32("OUTPUT", values["elements"]),),
        digest=digest(kind),
    )


def fitted(config: ServingConfig, server: KnownServer) -> ServingConfig:
    """The config in which this server is what its name says; UsageError if that is not this one."""
    if server.kind == "exponential" and config.max_batch != 1:
        raise UsageError(
            f"exponential serves one item at a time, and config {config.name} has max_batch {config.max_batch}; "
            "it must be 1"
        )
    return _bounded(config, int(server.parameters["queue"])) if server.kind == "reject" else config


def _bounded(config: ServingConfig, queue: int) -> ServingConfig:
    """With the queue that `reject` is for, so that whoever reads the config reads the bound."""
    if config.max_queue_size not in (0, queue):
        raise UsageError(
            f"config {config.name} has max_queue_size {config.max_queue_size}, and reject's queue is {queue}; "
            f"serve reject:queue={config.max_queue_size}, or choose another config"
        )
    return dataclasses.replace(config, max_queue_size=queue)


def _check_parameter(kind: str, name: str, value: float) -> None:
    if name not in KINDS[kind]:
        raise UsageError(f"{kind} has no parameter {name!r}; {did_you_mean(name, KINDS[kind])}")
    if name.endswith("_ms") and not 0 < value <= LONGEST_MS:
        raise UsageError(f"{kind}: {name} is {value:g}, must be above 0 and at most {LONGEST_MS}")
    if name == "at_s" and not 0 <= value <= LONGEST_S:
        raise UsageError(f"{kind}: {name} is {value:g}, must be from 0 to {LONGEST_S}")
    if name == "bits" and value not in IMAGE_DTYPES:
        raise UsageError(f"{kind}: bits is {value:g}, must be 8 (UINT8), 16 (FP16) or 32 (FP32)")
    if name in WHOLE:
        least, most = WHOLE[name]
        if not (least <= value <= most and value == int(value)):
            raise UsageError(f"{kind}: {name} is {value:g}, must be a whole number from {least} to {most}")


def _input(values: Mapping[str, float]) -> Tensor:
    if "pixels" in values:
        side = int(values["pixels"])
        return Tensor(name="INPUT", dtype=IMAGE_DTYPES[int(values["bits"])], shape=(3, side, side))
    return _fp32("INPUT", values["elements"])


def _fp32(name: str, size: float) -> Tensor:
    return Tensor(name=name, dtype="FP32", shape=(int(size),))


def shared_modules(kind: str) -> tuple[str, ...]:
    """Files of serve/models/ that a model imports; they are copied beside it."""
    return ("stub.py",) if kind in UNTIMED else ("stub.py", "timed.py")


def digest(kind: str) -> str:
    """Of all that decides what the server does: its own module and those that it shares with others."""
    content = b"".join((MODELS / name).read_bytes() for name in (f"{kind}.py", *shared_modules(kind)))
    return hashlib.sha256(content).hexdigest()
