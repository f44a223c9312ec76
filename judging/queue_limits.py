"""Which max_queue_size and queue timeout serve users best beyond a server's rate: candidates, simulated and compared.

Reads what was profiled of the server; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from brim.records import ServiceTime, Slo, SloRate
from judging.slo_model import Model
from judging.tolerances import LIMITS_MAY_COST, LIMITS_WITHIN
from queueing.arrivals import poisson
from queueing.batcher import NONE, STEADY, Batcher, Service

#: Requests of one simulation: goodput to a few tenths of a percent, a few milliseconds to run.
REQUESTS = 20_000
#: Overload that the limits are chosen for, as a multiple of the rate at the SLO.
BEYOND = 2.0
#: Sizes that are tried, as parts of the one that just fits by arithmetic, and in batches.
PARTS, BATCHES = (0.25, 0.5, 0.75, 1.0, 1.25), (0.5, 1.0, 2.0)
#: Closer goodputs count as the same, beyond the rate and at it, where less is given away.
SAME_BEYOND, SAME_AT_RATE = 0.01, 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A queue policy as Triton takes it."""

    max_queue_size: int = 0  # requests; 0 = unlimited
    queue_timeout_us: int = 0  # 0 = none

    @property
    def words(self) -> str:
        """`max_queue_size 24 and a timeout of 68.8 ms`."""
        size = f"max_queue_size {self.max_queue_size}" if self.max_queue_size else ""
        timeout = f"a timeout of {self.queue_timeout_us / 1e3:.3g} ms" if self.queue_timeout_us else ""
        return " and ".join(part for part in (size, timeout) if part) or "no limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class InTime:
    """What the simulator says of limits: the share of the requests that are in time."""

    limits: Limits
    beyond: float  # at BEYOND x the rate, with a tenth of the SLO to spare
    at_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What is worth measuring: the best bounded queue, and a timeout alone where one is possible."""

    unlimited: InTime
    limited: InTime
    timed: InTime | None
    why: str


def capacity_of(found: SloRate) -> float:
    """Items a second: as measured, and at least the rate that was found."""
    return max(found.capacity_items_per_s or 0.0, found.items_per_s or 0.0)


def model_of(found: SloRate, batcher: Batcher) -> Model:
    """What was profiled on the way to the rate; else every batch takes what a full one does at the capacity."""
    full_s = batcher.max_batch * batcher.instances / capacity_of(found)
    return Model(
        batcher=batcher,
        service=service_of(found.service, batcher) if found.service else Service.of(batcher, lambda _: full_s),
        overheads=(found.overheads if found.service else None) or NONE,
        noise=STEADY,
    )


def service_of(times: Sequence[ServiceTime], batcher: Batcher) -> Service:
    """Measured service times as the simulator takes them, between two sizes by interpolation.

    Those with the most instances busy stand for all: under overload none is idle. With one instance a size may have
    been seen by a request alone and again under load: then it is the mean of all its batches.
    """
    busiest = max(time.busy for time in times)
    known = [time for time in times if time.busy == busiest]
    sizes = sorted({time.items for time in known})
    of_size = [[time for time in known if time.items == size] for size in sizes]
    seconds = [np.average([t.ms / 1e3 for t in same], weights=[t.batches for t in same]) for same in of_size]
    return Service.of(batcher, lambda batch: float(np.interp(batch, sizes, seconds)))


def fitting_queue(model: Model, limit_ms: float) -> int:
    """How many requests may wait for the last of them to be answered within the limit.

    With k instances a full batch begins every tau / k; the last of q requests waits for one to end and for those of
    floor((q - 1) / B) batches before its own, which then takes tau: q = B * floor(k * (L - tau) / tau).
    """
    left_ms = limit_ms - model.overheads.additive_ms - batch_ms(model)
    return model.batcher.max_batch * max(0, int(model.batcher.instances * left_ms / batch_ms(model)))


def batch_ms(model: Model) -> float:
    """How long a full batch holds its instance while all are busy."""
    return model.full_batch_s * 1e3


def propose(model: Model, slo: Slo, rate_per_s: float, *, seed: int) -> Proposal:
    """The bounded queue with the most goodput at twice the rate (requests/s) that costs at most 1% of it at the rate.

    Of equally good ones those with the most goodput at the rate; a timeout, for the day on which batches take longer
    than was profiled; the shorter queue, in which all wait less.
    """
    unlimited, *tried = [_foresee(model, limits, slo, rate_per_s, seed) for limits in candidates(model, slo)]
    timed = next((t for t in tried if not t.limits.max_queue_size), None)
    bounded = [t for t in tried if t.limits.max_queue_size]
    fair = [t for t in bounded if t.at_rate >= (1 - LIMITS_MAY_COST) * unlimited.at_rate] or bounded
    good = [t for t in fair if t.beyond >= (1 - SAME_BEYOND) * max(t.beyond for t in fair)]
    same = [t for t in good if t.at_rate >= (1 - SAME_AT_RATE) * max(t.at_rate for t in good)]
    limited = min(same, key=lambda t: (not t.limits.queue_timeout_us, t.limits.max_queue_size))
    why = _why(model, slo, rate_per_s, unlimited, limited, timed)
    return Proposal(unlimited=unlimited, limited=limited, timed=timed, why=why)


def candidates(model: Model, slo: Slo) -> list[Limits]:
    """No limits, the timeout that just fits, and queues around the one that just fits, with and without it."""
    within_ms = LIMITS_WITHIN * slo.limit_ms
    fitting = fitting_queue(model, within_ms)
    per_round = model.batcher.max_batch * model.batcher.instances
    sizes = {max(1, round(part * fitting)) for part in PARTS} | {max(1, round(part * per_round)) for part in BATCHES}
    timeout_us = round((within_ms - model.overheads.additive_ms - batch_ms(model)) * 1e3)
    timeouts = [0, timeout_us] if timeout_us > model.batcher.delay_s * 1e6 else [0]
    return [
        Limits(max_queue_size=size, queue_timeout_us=timeout)
        for size, timeout in product([0, *sorted(sizes)], timeouts)
    ]


def _foresee(model: Model, limits: Limits, slo: Slo, rate_per_s: float, seed: int) -> InTime:
    return InTime(
        limits=limits,
        beyond=_good_share(model, limits, LIMITS_WITHIN * slo.limit_ms, BEYOND * rate_per_s, seed),
        at_rate=_good_share(model, limits, slo.limit_ms, rate_per_s, seed),
    )


def _good_share(model: Model, limits: Limits, limit_ms: float, rate_per_s: float, seed: int) -> float:
    """Share of simulated requests that are answered within the limit, the first half left out while queues fill."""
    arrivals_s: npt.NDArray[np.float64] = poisson(rate_per_s, REQUESTS / rate_per_s, seed) / 1e9
    batcher = replace(model.batcher, max_queue=limits.max_queue_size, timeout_s=limits.queue_timeout_us / 1e6)
    good = replace(model, batcher=batcher).latencies(arrivals_s, seed) <= limit_ms / 1e3
    return float(good[len(good) // 2 :].mean())


def _why(model: Model, slo: Slo, rate_per_s: float, unlimited: InTime, limited: InTime, timed: InTime | None) -> str:
    """The arithmetic and the simulation in one sentence each."""
    within = f"{LIMITS_WITHIN:.0%} of {slo.limit_ms:g} ms"
    fitting = fitting_queue(model, LIMITS_WITHIN * slo.limit_ms)
    fits = (
        f"{fitting} requests may wait for the last of them to be answered in {within}"
        if fitting
        else f"no further batch fits into {within} before one's own"
    )
    count = f"{model.batcher.instances} instance{'s' if model.batcher.instances > 1 else ''}"
    arithmetic = f"a full batch of {model.batcher.max_batch} takes {batch_ms(model):.3g} ms on {count}, so {fits}"
    kept = [f"{BEYOND * rate_per_s * limited.beyond:.4g} items/s are in time with {limited.limits.words}"]
    if timed is not None:
        kept.append(f"{BEYOND * rate_per_s * timed.beyond:.4g} with {timed.limits.words} alone")
    kept.append(f"{BEYOND * rate_per_s * unlimited.beyond:.4g} without limits")
    return f"{arithmetic}; simulated at {BEYOND:g} x {rate_per_s:.4g} items/s, {', '.join(kept)}"
