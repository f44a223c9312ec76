"""Servers of known rate behind the search for the rate at an SLO: simulated, with noise and overheads it is not told.

Reads and writes nothing; time passes as the loads say it would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from brim.records import Overheads, Slo, StatsRead, Status
from judging.rows import ROW_DTYPE, Rows
from judging.slo_observed import Observed
from queueing import arrivals
from queueing.batcher import Batcher, Service, Simulated, closed_loop, open_loop

Floats = npt.NDArray[np.float64]

#: Before each load a sender process starts; after it the last answers are awaited.
START_S = 1.5
READ_EVERY_S = 1.0
LONG_RUN_REQUESTS = 4_000_000
HALVINGS = 16
APART = 0.006
TRUTH_SEED = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueServer:
    """What the search is to find out; it is told the batcher only."""

    name: str
    batcher: Batcher
    service: Service
    overheads: Overheads
    service_cv: float = 0.03
    exponential: bool = False  # service times are, instead
    way_ms: float = 0.1  # mean of an exponential delay of each request before it reaches the queue, and of its answer

    def factors(self, count: int, random: np.random.Generator) -> Floats:
        if self.exponential:
            return random.standard_exponential(count)
        return np.maximum(0.2, 1.0 + self.service_cv * random.standard_normal(count))

    def latencies(self, offsets_s: Floats, random: np.random.Generator) -> tuple[Floats, Simulated]:
        """Seconds from intended to answered, inf where rejected, and what the server did."""
        reached = offsets_s + self._way(offsets_s.size, random)
        order = np.argsort(reached, kind="stable")
        done = open_loop(
            reached[order], self.batcher, self.service, self.overheads, noise=self.factors(offsets_s.size, random)
        )
        taken = np.empty(offsets_s.size)
        taken[order] = np.where(done.outcome == Status.OK, done.done_s, np.inf)
        return taken + self._way(offsets_s.size, random) - offsets_s, done

    def over_share(self, rate: float, slo: Slo, requests: int, seed: int) -> float:
        random = np.random.default_rng(seed)
        offsets_s = arrivals.poisson(rate, requests / rate, seed) / 1e9
        return float(np.mean(self.latencies(offsets_s, random)[0] > slo.limit_ms / 1e3))

    def rate_at(self, slo: Slo, high: float, runs: int) -> float:
        """The rate at the SLO in the long run: halvings of ln(rate) below `high`, then ln(share) as a straight line.

        Each run simulates eight million requests that nothing else sees.
        """
        low = high / 100
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            if self.over_share(middle, slo, LONG_RUN_REQUESTS // 10, TRUTH_SEED) > slo.over_allowed:
                high = middle
            else:
                low = middle
        below, above = (
            math.log(np.mean([self.over_share(low * (1 + step), slo, LONG_RUN_REQUESTS, TRUTH_SEED + 1 + run)
                              for run in range(runs)]))
            for step in (-APART, APART)
        )  # fmt: skip
        return low * (1 - APART + 2 * APART * (math.log(slo.over_allowed) - below) / (above - below))

    def _way(self, count: int, random: np.random.Generator) -> Floats:
        return self.way_ms / 1e3 * random.standard_exponential(count)


_OVERHEADS = Overheads(occupancy_ms=0.3, occupancy_per_item_ms=0.05, additive_ms=0.4)
_NO_OVERHEADS = Overheads(occupancy_ms=0.0, occupancy_per_item_ms=0.0, additive_ms=0.0)


def sleeping(instances: int) -> TrueServer:
    """20 ms a batch of up to 8, whatever its size."""
    batcher = Batcher(8, instances)
    service = Service.of(batcher, lambda size: 0.020)
    return TrueServer(name=f"sleep x{instances}", batcher=batcher, service=service, overheads=_OVERHEADS)


def contending() -> TrueServer:
    """Two instances that share one rate of work, as on a GPU."""
    seconds = np.array([[busy * (0.010 + 0.0005 * size) for size in range(1, 9)] for busy in (1, 2)])
    return TrueServer(name="contended", batcher=Batcher(8, 2), service=Service(seconds), overheads=_OVERHEADS)


def memoryless() -> TrueServer:
    """M/M/1: its rate at an SLO is known in closed form, mu - ln(1 / (1 - p)) / L."""
    batcher = Batcher(1, 1)
    return TrueServer(
        name="M/M/1", batcher=batcher, service=Service.of(batcher, lambda size: 0.001), overheads=_NO_OVERHEADS,
        exponential=True, way_ms=0.0,
    )  # fmt: skip


def slow() -> TrueServer:
    """Twelve items a second."""
    batcher = Batcher(4, 1)
    service = Service.of(batcher, lambda size: 0.020 + 0.078 * size)
    return TrueServer(name="slow", batcher=batcher, service=service, overheads=_OVERHEADS)


@dataclass(slots=True)
class SimulatedProbe:
    """experiments.measure.slo_profile.Loader on a TrueServer; `now_s` is its clock."""

    server: TrueServer
    seed: int
    now_s: float = 0.0
    loads: int = 0
    _random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now_s

    def closed(self, concurrency: int, seconds: float) -> Observed:
        server = self.server
        requests = concurrency + round(2 * seconds * server.batcher.max_batch * server.batcher.instances
                                       / float(server.service.seconds.min()))  # fmt: skip
        done = closed_loop(
            concurrency, requests, server.batcher, server.service, server.overheads,
            noise=server.factors(requests, self._random),
        )  # fmt: skip
        sent = done.arrival_s <= seconds
        return self._observed(done, done.arrival_s[sent], done.done_s[sent] - done.arrival_s[sent], seconds)

    def open(self, offsets_ns: npt.NDArray[np.int64], rate_per_s: float, seconds: float) -> Observed:
        offsets_s = offsets_ns / 1e9
        latency_s, done = self.server.latencies(offsets_s, self._random)
        return self._observed(done, offsets_s, latency_s, seconds, offsets_ns)

    def _observed(
        self, done: Simulated, due_s: Floats, latency_s: Floats, seconds: float,
        offsets_ns: npt.NDArray[np.int64] | None = None,
    ) -> Observed:  # fmt: skip
        self.now_s += START_S
        start_ns = round(self.now_s * 1e9)
        rows = np.zeros(due_s.size, ROW_DTYPE).view(Rows)
        intended = np.rint(due_s * 1e9).astype(np.int64) if offsets_ns is None else offsets_ns
        rows["intended_ns"] = rows["sent_ns"] = start_ns + intended
        answered = np.isfinite(latency_s)
        rows["done_ns"] = rows["sent_ns"] + np.rint(np.where(answered, latency_s, 0.0) * 1e9).astype(np.int64)
        rows["status"] = np.where(answered, Status.OK, Status.REJECTED)
        rows["items"] = 1
        rows = rows[np.argsort(rows["done_ns"], kind="stable")]
        self.now_s = max(self.now_s + seconds, float(rows["done_ns"].max()) / 1e9 if rows.size else 0.0)
        self.loads += 1
        return Observed(
            load=self.loads - 1, start_ns=start_ns, end_ns=start_ns + round(seconds * 1e9), rows=rows,
            reads=self._reads(done, start_ns, seconds), offsets_ns=offsets_ns,
        )  # fmt: skip

    def _reads(self, done: Simulated, start_ns: int, seconds: float) -> tuple[StatsRead, ...]:
        """The server's counters once a second, as its own statistics would have them: the batches that have ended."""
        overheads = self.server.overheads
        held_s = (overheads.occupancy_ms + overheads.occupancy_per_item_ms * done.batch_items) / 1e3
        busy_ns = np.rint((done.batch_end_s - held_s - done.batch_start_s) * 1e9).astype(np.int64)
        order = np.argsort(done.batch_end_s, kind="stable")
        ended_s, items, busy_ns = done.batch_end_s[order], done.batch_items[order], busy_ns[order]
        return tuple(
            _read(start_ns + round(at_s * 1e9), items[: (n := np.searchsorted(ended_s, at_s))], busy_ns[:n])
            for at_s in (*np.arange(0.0, seconds, READ_EVERY_S), seconds)
        )


def _read(at_ns: int, items: npt.NDArray[np.int32], busy_ns: npt.NDArray[np.int64]) -> StatsRead:
    sizes = np.unique(items)
    return StatsRead(
        before_ns=at_ns, after_ns=at_ns, inference_count=int(items.sum()), execution_count=items.size,
        success_count=int(items.sum()), fail_count=0, queue_ns=0, request_ns=0,
        batch_counts={str(size): int(np.count_nonzero(items == size)) for size in sizes},
        busy_ns=int(busy_ns.sum()), infer_ns=int(busy_ns.sum()),
        client_cpu_s=0.0, server_cpu_s=None, machine_busy_s=None, machine_total_s=None,
        batch_busy_ns={str(size): int(busy_ns[items == size].sum()) for size in sizes},
    )  # fmt: skip
