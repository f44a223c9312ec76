"""A server with Triton's dynamic batcher as a discrete-event simulation: requests in, times and batches out.

Pure; the event loop itself is kernel.py's. Times are float64 seconds. Same arrivals and same noise, same answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brim.errors import UsageError
from brim.records import Overheads, ServingConfig

Floats = NDArray[np.float64]

NONE = Overheads(occupancy_ms=0.0, occupancy_per_item_ms=0.0, additive_ms=0.0)
NO_ITEMS = np.empty(0, dtype=np.int32)  # every request carries one
STEADY = np.ones(1)
BY_ORDER = np.empty(0)  # noise that is of no instant


@dataclass(frozen=True, slots=True)
class Batcher:
    """How requests become batches, in the words of Triton's dynamic_batching and instance_group."""

    max_batch: int
    instances: int = 1
    delay_s: float = 0.0  # so long the oldest waits for a batch of a preferred size
    preferred: tuple[int, ...] = ()  # batch sizes; none = max_batch alone
    max_queue: int = 0  # an arrival that finds so many requests queued is rejected; 0 = none is
    timeout_s: float = 0.0  # what waited longer when a batch is formed is rejected; 0 = nothing is

    def __post_init__(self) -> None:
        for name in ("max_batch", "instances"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, must be >= 1")
        for name in ("delay_s", "max_queue", "timeout_s"):
            _require(0 <= getattr(self, name) < np.inf, f"{name} is {getattr(self, name)}, must be >= 0")
        for size in self.preferred:
            _require(1 <= size <= self.max_batch, f"preferred batch {size} is not between 1 and {self.max_batch}")

    @classmethod
    def of(cls, config: ServingConfig) -> Batcher:
        """The batcher of a server that is configured so."""
        return cls(
            max_batch=config.max_batch,
            instances=config.instances,
            delay_s=config.queue_delay_us / 1e6,
            preferred=config.preferred_batches,
            max_queue=config.max_queue_size,
            timeout_s=config.queue_timeout_us / 1e6,
        )

    @property
    def preferred_flags(self) -> NDArray[np.bool_]:
        """By batch size, up to the largest preferred one, whether it is preferred."""
        sizes = self.preferred or (self.max_batch,)
        flags = np.zeros(max(sizes) + 1, dtype=np.bool_)
        flags[list(sizes)] = True
        return flags


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """How long the engine takes: seconds[m-1, b-1] for a batch of b while m instances are busy.

    When that number changes, what is left of a batch goes on at the new pace.
    """

    seconds: Floats

    def __post_init__(self) -> None:
        _require(self.seconds.ndim == 2, f"service times have {self.seconds.ndim} dimensions, must be busy x batch")
        sound = np.isfinite(self.seconds) & (self.seconds >= 0)
        _require(bool(sound.all()), "a service time is negative or no number, must be >= 0 s")

    @classmethod
    def of(cls, batcher: Batcher, tau: Callable[[int], float]) -> Service:
        """tau(b) seconds for a batch of b, however many instances are busy."""
        row = np.array([tau(size) for size in range(1, batcher.max_batch + 1)], dtype=np.float64)
        return cls(np.tile(row, (batcher.instances, 1)))

    @property
    def contended(self) -> bool:
        """Whether instances slow each other down."""
        return bool((self.seconds != self.seconds[0]).any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """What became of each request, in order of arrival, and of each batch, in order of its start."""

    arrival_s: Floats
    start_s: Floats  # of its batch; NaN where rejected
    done_s: Floats  # when its answer was there, a rejection too
    outcome: NDArray[np.uint8]  # brim.records.Status: OK or REJECTED
    batch_start_s: Floats
    batch_end_s: Floats  # when its instance was free again
    batch_items: NDArray[np.int32]
    batch_instance: NDArray[np.int32]


def open_loop(
    arrivals_s: Floats,
    batcher: Batcher,
    service: Service,
    overheads: Overheads = NONE,
    *,
    items: NDArray[np.integer] | None = None,
    noise: Floats | None = None,
    noise_at_s: Floats | None = None,
    service_s: Floats | None = None,
) -> Simulated:
    """Requests that arrive at sorted times, whatever becomes of those before them; served to the last.

    `noise` multiplies the service times of successive batches, and repeats; with `noise_at_s`, as many sorted instants,
    a batch takes the one nearest to its start. `service_s` are recorded service times by order of execution, taken
    instead of both; they repeat too. `items` are those of each request, else 1.
    """
    arrivals_s = _floats(arrivals_s)
    ordered = bool((arrivals_s[1:] >= arrivals_s[:-1]).all() and np.isfinite(arrivals_s[-1:]).all())
    _require(ordered, "arrivals are not sorted, or no numbers")
    carried = NO_ITEMS if items is None else _carried(items, arrivals_s.size, batcher)
    if service_s is not None:
        service, noise = Service(np.ones_like(service.seconds)), service_s
    until = None if noise is None or noise_at_s is None else _between(noise_at_s, noise.size)
    return _simulate(arrivals_s, 0, batcher, service, overheads, carried, noise, until)


def closed_loop(
    concurrency: int,
    requests: int,
    batcher: Batcher,
    service: Service,
    overheads: Overheads = NONE,
    *,
    noise: Floats | None = None,
) -> Simulated:
    """So many clients that each send one item, and the next when its answer is there: `requests` in all."""
    _require(1 <= concurrency <= requests, f"{concurrency} clients cannot share {requests} requests")
    return _simulate(np.zeros(requests), concurrency, batcher, service, overheads, NO_ITEMS, noise)


def _simulate(
    arrivals_s: Floats,
    clients: int,
    batcher: Batcher,
    service: Service,
    overheads: Overheads,
    items: NDArray[np.int32],
    noise: Floats | None,
    noise_until: Floats | None = None,
) -> Simulated:
    from queueing import kernel  # numba takes half a second to import: only who simulates waits for it

    shape = (batcher.instances, batcher.max_batch)
    _require(service.seconds.shape == shape, f"service times are {service.seconds.shape}, must be {shape}")
    factors = STEADY if noise is None else _floats(noise)
    sound = factors.size > 0 and bool((np.isfinite(factors) & (factors >= 0)).all())
    _require(sound, "noise or recorded service times are none, negative or no numbers, must be >= 0")
    requests = arrivals_s.size
    per_item_ms = overheads.occupancy_per_item_ms * np.arange(1, batcher.max_batch + 1, dtype=np.float64)
    occupancy = _floats((overheads.occupancy_ms + per_item_ms) / 1e3)
    ahead = bool((service.seconds * factors.min() + occupancy >= 0).all()) and overheads.additive_ms >= 0
    _require(ahead, f"with {overheads} a batch or an answer would be done before it began")
    start, done, outcome = np.full(requests, np.nan), np.empty(requests), np.zeros(requests, dtype=np.uint8)
    batch_start, batch_end = np.empty(requests), np.empty(requests)
    batch_items, batch_instance = np.empty(requests, dtype=np.int32), np.empty(requests, dtype=np.int32)
    batches = kernel.run(
        arrivals_s, clients, items,
        _floats(service.seconds),
        occupancy,
        service.contended, overheads.additive_ms / 1e3,
        batcher.max_batch, batcher.preferred_flags, batcher.delay_s, batcher.max_queue, batcher.timeout_s,
        factors, BY_ORDER if noise_until is None else noise_until,
        start, done, outcome, batch_start, batch_end, batch_items, batch_instance,
    )  # fmt: skip
    return Simulated(
        arrival_s=arrivals_s,
        start_s=start,
        done_s=done,
        outcome=outcome,
        batch_start_s=batch_start[:batches],
        batch_end_s=batch_end[:batches],
        batch_items=batch_items[:batches],
        batch_instance=batch_instance[:batches],
    )


def _carried(items: NDArray[np.integer], requests: int, batcher: Batcher) -> NDArray[np.int32]:
    _require(items.shape == (requests,), f"items of {items.size} requests, but {requests} arrivals")
    fits = bool(((items >= 1) & (items <= batcher.max_batch)).all())
    _require(fits, f"a request carries no item, or more than the {batcher.max_batch} of a batch")
    return np.require(items, np.int32, ["C", "W", "E"])


def _between(instants_s: Floats, drawn: int) -> Floats:
    """Until when each instant but the last is the nearest."""
    ordered = instants_s.size == drawn and bool((instants_s[1:] >= instants_s[:-1]).all())
    _require(ordered, f"{instants_s.size} instants for noise of {drawn}, or they are not sorted")
    return _floats((instants_s[1:] + instants_s[:-1]) / 2)


def _floats(values: Floats) -> Floats:
    """As the kernel was compiled for: a read-only array would be compiled for anew."""
    return np.require(values, np.float64, ["C", "W", "E"])


def _require(held: bool, message: str) -> None:
    if not held:
        raise UsageError(message)
