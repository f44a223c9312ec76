"""The queueing model of one server, out of closed-loop loads: service times by batch size, and what a batch costs more.

Reads the profiling loads; writes nothing. What the engine's own statistics say of each batch size, plus three overheads
from throughput and latency at known numbers in flight. Nothing is fitted on the load that is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brim.records import Overheads, ServiceTime, Status
from judging.slo_observed import Floats, Observed, service_latencies, throughput
from judging.windows import batch_period_ns, server_delta
from queueing.batcher import Batcher, Service, open_loop

#: A size seen in a single batch is interpolated from its neighbours: it may have been a hiccup.
LEAST_BATCHES = 2
#: Measured at full batches against k * B / (service + occupancy): further apart, something else is the limit.
CAPACITY_AGREES = 0.03
#: Fewer latencies of single requests do not show how service times scatter; they are then taken to do so by as much.
LEAST_LATENCIES, ASSUMED_CV = 8, 0.05
#: Length of a profiling load: two reads of the statistics lie in what follows the warm-up.
PROFILE_S, PROFILE_MOST_S = 2.0, 6.0
#: A request that takes so much of a batch's time outside of the server leaves instances idle at two requests each.
ALWAYS_WAITING = 0.9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A server as the simulator knows it."""

    batcher: Batcher
    service: Service
    overheads: Overheads
    noise: Floats  # factors of a batch's service time, of mean 1, drawn anew for each batch

    @property
    def full_batch_s(self) -> float:
        """So long an instance is taken by a full batch."""
        batch = self.batcher.max_batch
        occupancy_ms = self.overheads.occupancy_ms + self.overheads.occupancy_per_item_ms * batch
        return float(self.service.seconds[-1, -1]) + occupancy_ms / 1e3

    @property
    def capacity(self) -> float:
        """Items a second with every batch full."""
        return self.batcher.instances * self.batcher.max_batch / self.full_batch_s

    @property
    def noisy(self) -> bool:
        return self.noise.size > 1

    def latencies(self, arrivals_s: Floats, seed: int) -> Floats:
        """Seconds that each request takes; inf where it is rejected."""
        noise = np.random.default_rng(seed).choice(self.noise, arrivals_s.size) if self.noisy else self.noise
        done = open_loop(arrivals_s, self.batcher, self.service, self.overheads, noise=noise)
        found: Floats = np.where(done.outcome == Status.OK, done.done_s - arrivals_s, np.inf)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """What closed-loop loads say of a server."""

    model: Model | None  # None where the server tells nothing of its batches
    table: tuple[ServiceTime, ...]
    capacity: float  # items/s, measured with full batches
    rejected: str  # why the model does not fit; "" = it does


@dataclass(frozen=True, slots=True, kw_only=True)
class _Closed:
    """One closed-loop load in numbers."""

    in_flight: int
    items_per_s: float
    batch: float  # mean
    service_s: float  # mean of a batch
    sizes: Mapping[int, tuple[int, float]]  # batch size -> batches, mean seconds

    def occupancy_s(self, instances: int) -> float:
        """What an instance is held for beyond the service time, where it is never idle."""
        return self.period_s(instances) - self.service_s

    def period_s(self, instances: int) -> float:
        """From batch to batch on one instance."""
        return instances * self.batch / self.items_per_s


def seconds_of(batcher: Batcher, single_s: float) -> float:
    """How long each further load of a profile is, when a single request takes so long: ten full batches, and a read."""
    return min(PROFILE_MOST_S, max(PROFILE_S, 10 * batcher.max_batch * single_s))


def ladder(batcher: Batcher) -> tuple[int, ...]:
    """The numbers in flight that a profile wants: one alone, two an instance, half-full and full batches."""
    batch, instances = batcher.max_batch, batcher.instances
    return tuple(sorted({1, 2 * instances, batch * instances, 2 * batch * instances}))


def fit(loads: Sequence[tuple[int, Observed]], batcher: Batcher) -> Profile:
    """The model out of (requests in flight, load) pairs; one of them is alone, one fills the batches.

    A single request sees W = service + occupancy + additive; an instance that never idles starts a batch every
    service + occupancy, of occupancy = o0 + o1 * b.
    """
    _, fullest = max(loads, key=lambda one: one[0])
    if any(len(load.reads) < 2 or load.reads[-1].batch_counts == load.reads[0].batch_counts for _, load in loads):
        period_ns = batch_period_ns((), fullest.rows, from_ns=fullest.start_ns, until_ns=fullest.end_ns)
        untold = "the server's statistics tell nothing of its batches"
        return Profile(model=None, table=(), capacity=throughput(fullest, period_ns), rejected=untold)
    return _fitted([_closed(in_flight, load) for in_flight, load in loads], loads, batcher)


def _fitted(seen: Sequence[_Closed], loads: Sequence[tuple[int, Observed]], batcher: Batcher) -> Profile:
    instances = batcher.instances
    alone = next(one for one in seen if one.in_flight == 1)
    busy = [one for one in seen if one.in_flight >= 2 * instances]
    single = service_latencies(next(load for in_flight, load in loads if in_flight == 1))
    single_s = float(single.mean()) if single.size else float("inf")
    full = max(busy, key=lambda one: one.in_flight)
    fixed_s, per_item_s = _occupancy(busy, alone, single_s, instances)
    additive_s = max(0.0, single_s - alone.service_s - fixed_s - per_item_s)
    overheads = Overheads(
        occupancy_ms=fixed_s * 1e3, occupancy_per_item_ms=per_item_s * 1e3, additive_ms=additive_s * 1e3
    )
    model = Model(
        batcher=batcher,
        service=_service(alone, busy, batcher),
        overheads=overheads,
        noise=_noise(single, alone.service_s),
    )
    table = _table(alone, 1) + _table_of(busy, instances)
    rejected = _disagreement(batcher, overheads, full, float(model.service.seconds[-1, -1]))
    if batcher.max_batch == 1:  # full batches are single requests, and what they gave is what the overheads are of
        unsure_s = 3 * float(single.std()) / single.size**0.5 if single.size else 0.0
        rejected = _held_longer(fixed_s + per_item_s, single_s - alone.service_s + unsure_s, full, instances)
    return Profile(model=model, table=table, capacity=full.items_per_s, rejected=rejected)


def _closed(in_flight: int, load: Observed) -> _Closed:
    settled = [read for read in load.reads if load.settled_ns <= read.middle_ns <= load.end_ns]
    first, last = (settled[0], settled[-1]) if len(settled) > 1 else (load.reads[0], load.reads[-1])
    if last.batch_counts == first.batch_counts:  # batches so long that none ended in between
        first, last = load.reads[0], load.reads[-1]
    counts = server_delta(first, last).batch_counts
    sizes: dict[int, tuple[int, float]] = {}
    for size, batches in counts.items():
        spent_ns = last.batch_busy_ns.get(size, 0) - first.batch_busy_ns.get(size, 0)
        sizes[int(size)] = (batches, spent_ns / 1e9 / batches)
    batches = max(1, sum(counts.values()))
    batch = sum(size * n for size, (n, _) in sizes.items()) / batches
    period_ns = max(1, round((last.middle_ns - first.middle_ns) / batches))
    return _Closed(
        in_flight=in_flight,
        items_per_s=throughput(load, period_ns),
        batch=batch,
        service_s=sum(n * mean_s for n, mean_s in sizes.values()) / batches,
        sizes=sizes,
    )


def _occupancy(busy: Sequence[_Closed], alone: _Closed, single_s: float, instances: int) -> tuple[float, float]:
    """Seconds a batch and seconds an item: a line through the loads that kept every instance busy."""
    loads = [one for one in busy if one.items_per_s > 0]
    if not loads:
        return 0.0, 0.0
    # Two requests an instance do not keep it busy if each spends a batch's time outside of the server.
    waiting = [one for one in loads if single_s - alone.service_s < ALWAYS_WAITING * one.period_s(instances)]
    loads = waiting or [max(loads, key=lambda one: one.in_flight)]
    batch = np.array([one.batch for one in loads])
    spent_s = np.array([one.occupancy_s(instances) for one in loads])
    slope, at_zero = 0.0, float(spent_s.mean())
    if np.ptp(batch) > 0.5:
        slope, at_zero = (float(c) for c in np.polyfit(batch, spent_s, 1))
    if slope < 0:
        slope, at_zero = 0.0, float(spent_s.mean())
    if at_zero < 0:
        slope, at_zero = float(spent_s @ batch / (batch @ batch)), 0.0
    return max(0.0, at_zero), max(0.0, slope)


def _service(alone: _Closed, busy: Sequence[_Closed], batcher: Batcher) -> Service:
    """Seconds by instances busy and batch size; between one instance and all of them a straight line.

    With all busy every size is seen or interpolated; with one, a single request is, and the other sizes are taken to
    be as much faster as that.
    """
    k = batcher.instances
    row = _interpolated(_merged(busy if k > 1 else [alone, *busy]), batcher.max_batch)
    ratio = alone.service_s / row[0] if k > 1 and row[0] > 0 else 1.0
    share = np.linspace(1.0, 0.0, k) if k > 1 else np.zeros(1)  # of the way back to one instance alone
    return Service(row * (1.0 + (ratio - 1.0) * share)[:, None])


def _merged(loads: Sequence[_Closed]) -> dict[int, tuple[int, float]]:
    total: dict[int, tuple[int, float]] = {}
    for load in loads:
        for size, (n, mean_s) in load.sizes.items():
            had, before_s = total.get(size, (0, 0.0))
            total[size] = (had + n, (had * before_s + n * mean_s) / (had + n))
    return total


def _interpolated(sizes: Mapping[int, tuple[int, float]], max_batch: int) -> Floats:
    """Seconds for 1 … max_batch: straight lines between the sizes seen, and on beyond them."""
    known = {size: mean_s for size, (n, mean_s) in sizes.items() if n >= LEAST_BATCHES}
    known = known or {size: mean_s for size, (_, mean_s) in sizes.items()}
    at = sorted(known)
    found = np.interp(np.arange(1, max_batch + 1), at, [known[size] for size in at])
    if len(at) > 1:
        below = (known[at[1]] - known[at[0]]) / (at[1] - at[0])
        above = (known[at[-1]] - known[at[-2]]) / (at[-1] - at[-2])
        numbers = np.arange(1, max_batch + 1)
        found = np.where(numbers < at[0], known[at[0]] + below * (numbers - at[0]), found)
        found = np.where(numbers > at[-1], known[at[-1]] + above * (numbers - at[-1]), found)
    floor = min(known.values())
    filled: Floats = np.maximum(found, 0.5 * floor)
    return filled


def _noise(single_s: Floats, service_s: float) -> Floats:
    """Service times of single requests by their mean: latencies less their constant part, as far as they show it."""
    if single_s.size < LEAST_LATENCIES or service_s <= 0:
        return np.array([1 - ASSUMED_CV, 1 + ASSUMED_CV])
    factors = np.maximum(0.01, 1.0 + (single_s - single_s.mean()) / service_s)
    noise: Floats = factors / factors.mean()
    return noise


def _table(load: _Closed, busy: int) -> tuple[ServiceTime, ...]:
    return tuple(
        ServiceTime(items=size, busy=busy, ms=mean_s * 1e3, batches=n)
        for size, (n, mean_s) in sorted(load.sizes.items())
    )


def _table_of(loads: Sequence[_Closed], busy: int) -> tuple[ServiceTime, ...]:
    merged = _merged(loads)
    return tuple(ServiceTime(items=size, busy=busy, ms=s * 1e3, batches=n) for size, (n, s) in sorted(merged.items()))


def _held_longer(occupancy_s: float, beyond_s: float, full: _Closed, instances: int) -> str:
    """Why a batch cannot hold its instance so long; "" if it can.

    A request alone sees all of that, and its way there and back besides.
    """
    if occupancy_s - beyond_s <= CAPACITY_AGREES * full.period_s(instances):
        return ""
    return (
        f"{full.in_flight} in flight gave {full.items_per_s:.4g} items/s, each {1e3 * occupancy_s:.3g} ms beyond its "
        f"service time, a request alone {1e3 * beyond_s:.3g} ms: the client, the transport or copies are the limit"
    )


def _disagreement(batcher: Batcher, overheads: Overheads, full: _Closed, tabled_s: float) -> str:
    """Why what full batches gave does not fit the model; "" if it does.

    Its own full batches are asked how long they took, as the machine may have run faster or slower in other loads.
    """
    batch = batcher.max_batch
    service_s = full.sizes.get(batch, (0, tabled_s))[1]
    held_s = service_s + (overheads.occupancy_ms + overheads.occupancy_per_item_ms * batch) / 1e3
    allowed = batcher.instances * batch / held_s
    off = full.items_per_s / allowed - 1
    if abs(off) <= CAPACITY_AGREES:
        return ""
    return (
        f"{full.in_flight} in flight gave {full.items_per_s:.4g} items/s, {off:+.1%} from the {allowed:.4g} "
        "that its service times allow: the client, the transport or copies are the limit"
    )
