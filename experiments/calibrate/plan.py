"""What is calibrated: known servers, each at some numbers of requests in flight. Pure.

The numbers follow from how a batcher behaves: one request alone, then doublings up to two full batches an instance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from brim.errors import UsageError
from brim.records import KnownServer, ServingConfig, Variant
from serve import known
from serve.configs import resolve

Quantity = Literal["capacity", "throughput", "latency", "batch"]

#: Servers that answer at once: what the client spends between two requests is then no small part of a latency, and
#: their batches are what the client happens to send together. Their rate is a hint of the client's own ceiling.
AT_ONCE = ("null", "image")
#: What `brim calibrate` measures by itself: kind, parameters, max_batch, instances, and requests in flight. Open loops
#: follow where one request and full batches are among them.
SHORT_SET: tuple[tuple[str, Mapping[str, float], int, int, tuple[int, ...]], ...] = (
    ("sleep", {"service_ms": 20.0}, 8, 1, (1, 2, 16)),
    ("sleep", {"service_ms": 20.0}, 8, 2, (32,)),
    ("affine", {"tau0_ms": 10.0, "alpha_ms": 2.0}, 8, 1, (16,)),
    ("null", {}, 64, 1, (128,)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One known server with so many requests in flight, and what is held against its log there."""

    variant: Variant
    concurrency: int
    quantities: tuple[Quantity, ...]

    @property
    def server(self) -> str:
        return described(self.variant)


def variant(kind: str, parameters: Mapping[str, float], *, max_batch: int, instances: int) -> Variant:
    """That known server, served in that way; UsageError if it cannot be."""
    server = known.known_server(kind, parameters)
    config = ServingConfig(name=f"b{max_batch}x{instances}", max_batch=max_batch, instances=instances)
    return Variant(model=server, config=known.fitted(resolve(config, mode="embedded", known=True), server))


def described(served: Variant) -> str:
    """`sleep service_ms=20 B=8 k=2`: its kind, what differs from the kind's defaults, and how it is served."""
    assert isinstance(served.model, KnownServer)
    defaults = known.KINDS[served.model.kind]
    told = [f"{name}={value:g}" for name, value in served.model.parameters.items() if value != defaults[name]]
    return " ".join([served.model.kind, *told, f"B={served.config.max_batch}", f"k={served.config.instances}"])


def short_set() -> list[Cell]:
    """What `brim calibrate` measures by itself."""
    cells = []
    for kind, parameters, max_batch, instances, points in SHORT_SET:
        served = variant(kind, parameters, max_batch=max_batch, instances=instances)
        cells += [cell(served, n) for n in points]
    return cells


def opened(cells: Sequence[Cell]) -> list[Variant]:
    """The servers that are measured from one request alone to full batches, which tell the capacity.

    Full batches alone would do; but who asks for one point is to have that point only, and the short set two minutes.
    """
    asked = {(each.variant.name, each.concurrency) for each in cells}
    return [
        each for each in variants(cells)
        if not at_once(each) and {(each.name, 1), (each.name, each.config.full)} <= asked
    ]  # fmt: skip


def at_once(served: Variant) -> bool:
    assert isinstance(served.model, KnownServer)  # nothing else is calibrated
    return served.model.kind in AT_ONCE


def ladder(served: Variant) -> list[Cell]:
    """One server at 1, 2, 4, … and always at two full batches an instance, as far as its queue holds them."""
    full = served.config.full
    doublings = [1 << n for n in range(full.bit_length()) if 1 << n < full]
    holds = served.config.max_queue_size or full
    return [cell(served, n) for n in (*doublings, full) if n <= holds]


def cell(served: Variant, concurrency: int) -> Cell:
    """What can be known of that server there: its capacity only where every batch is full."""
    assert isinstance(served.model, KnownServer)
    if concurrency < 1:
        raise UsageError(f"--concurrency {concurrency}: must be at least 1")
    if served.config.max_queue_size and concurrency > served.config.max_queue_size:
        raise UsageError(
            f"--concurrency {concurrency}: the queue of {served.model.kind} holds {served.config.max_queue_size}, and "
            "perf_analyzer ends at the first rejection; use less, or a longer queue"
        )
    if at_once(served):
        return Cell(variant=served, concurrency=concurrency, quantities=("throughput",))
    rate: Quantity = "capacity" if concurrency >= served.config.full else "throughput"
    return Cell(variant=served, concurrency=concurrency, quantities=(rate, "latency", "batch"))


def variants(cells: Sequence[Cell]) -> list[Variant]:
    """The servers of these cells, each once."""
    return list({each.variant.name: each.variant for each in cells}.values())
