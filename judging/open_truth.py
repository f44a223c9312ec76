"""What a known server's log and the queueing simulator say of an open loop: the latencies that must come out. Pure.

The simulator is fed with what was recorded of the judged load itself: when each request was sent, and how long the
server logged each batch. What a batch costs beyond that is frozen from an open loop that is not judged: nothing is
fitted on the one that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from brim.records import Overheads, Status
from judging.rows import Rows
from judging.truth import Executions, Log
from queueing.batcher import Batcher, Service, open_loop

#: The first tenth of a load is not compared: connections open with the first requests.
BEGINNING = 0.1
#: |error| of a tail that holds, as a share: it is hypersensitive to how long a batch takes.
P99 = 0.05
#: A request that was sent no longer ago may not be in the queue yet.
UNDERWAY_NS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A judged stretch of a closed loop, and what its requests took on average."""

    log: Log
    start_ns: int
    end_ns: int
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Mean and 99th percentile from the intended time, in ms."""

    mean: float
    p99: float


def overheads(alone: Stretch, pairs: Stretch, full: Stretch) -> Overheads | None:
    """From one request in flight, two an instance (small batches in turn), and two full batches an instance.

    Occupancy is what lies between the end of a batch and the start of the next on its instance while requests wait,
    o0 + o1 b; additive is what a request alone takes beyond its logged service and that. None without such batches.
    """
    small, large, single = (_handed_over(each) for each in (pairs, full, alone))
    if small is None or large is None or single is None:
        return None
    wider = large.items - small.items
    per_item_ms = max(0.0, (large.gap_ms - small.gap_ms) / wider) if wider > 0.5 else 0.0
    fixed_ms = max(0.0, large.gap_ms - per_item_ms * large.items)
    beyond_ms = alone.latency_ms - single.service_ms - fixed_ms - per_item_ms
    return Overheads(
        occupancy_ms=fixed_ms, occupancy_per_item_ms=per_item_ms, additive_ms=max(0.0, beyond_ms)
    )  # fmt: skip


def overheads_open(log: Log, rows: Rows, batcher: Batcher) -> Overheads | None:
    """From one open load, which is not judged; None where no request waited behind a batch, or one did not end well.

    A closed loop answers and is refilled all at once; where requests come one by one, less is in the way of the next
    batch, and processors sleep deeper. So occupancy is here the line through the gaps behind batches by their items,
    over those behind which requests waited, and additive is what the mean latency exceeds the simulated one by.
    """
    seen = measured(rows)
    if seen is None:
        return None
    items, gap_ms = _gaps_while_waiting(log, rows)
    if not items.size:
        return None
    # Batches of one size tell no slope.
    per_item_ms, fixed_ms = np.polyfit(items, gap_ms, 1) if np.ptp(items) > 0 else (0.0, gap_ms.mean())
    occupancy = Overheads(
        occupancy_ms=max(0.0, float(fixed_ms)), occupancy_per_item_ms=max(0.0, float(per_item_ms)), additive_ms=0.0
    )  # fmt: skip
    simulated = foreseen(rows, log, batcher, occupancy)
    return None if simulated is None else replace(occupancy, additive_ms=max(0.0, seen.mean - simulated.mean))


def _gaps_while_waiting(log: Log, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Items of each batch behind which a request waited, and ms until the next began on its instance."""
    sent = rows[np.argsort(rows["sent_ns"], kind="stable")]
    first_ns, last_ns = int(sent["sent_ns"][0]), int(sent["sent_ns"][-1])
    started = log.ended(first_ns, int(rows["done_ns"].max()))
    there, taken = np.cumsum(sent["items"]), np.cumsum(started[:, 2])
    items, gap_ms = [], []
    for executions in log.instances:
        inside = (executions[:-1, 0] >= first_ns) & (executions[:-1, 1] <= last_ns)
        ended_ns = executions[:-1, 1][inside]
        arrived = np.searchsorted(sent["sent_ns"], ended_ns - UNDERWAY_NS)
        begun = np.searchsorted(started[:, 0], ended_ns)
        waited = np.append(0, there)[arrived] > np.append(0, taken)[begun]
        items.append(executions[:-1, 2][inside][waited])
        gap_ms.append((executions[1:, 0][inside] - ended_ns)[waited] / 1e6)
    return np.concatenate([np.empty(0, np.int64), *items]), np.concatenate([np.empty(0), *gap_ms])


@dataclass(frozen=True, slots=True, kw_only=True)
class _HandedOver:
    items: float  # of a batch, on average
    service_ms: float
    gap_ms: float  # until the next one began on the same instance


def _handed_over(stretch: Stretch) -> _HandedOver | None:
    parts = []
    for executions in stretch.log.instances:
        began, ended, items = executions[:-1].T
        inside = (began >= stretch.start_ns) & (began < stretch.end_ns)
        gaps = executions[1:, 0] - ended
        parts.append(np.stack([items, ended - began, gaps], axis=1)[inside])
    together = np.concatenate([np.empty((0, 3), np.int64), *parts])
    if not together.size:
        return None
    mean_items, service_ns, gap_ns = (float(column.mean()) for column in together.T)
    return _HandedOver(items=mean_items, service_ms=service_ns / 1e6, gap_ms=gap_ns / 1e6)


def compared(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which requests of an open load are compared: those behind its beginning."""
    first_ns, last_ns = int(rows["intended_ns"].min()), int(rows["intended_ns"].max())
    behind: npt.NDArray[np.bool_] = rows["intended_ns"] >= first_ns + BEGINNING * (last_ns - first_ns)
    return behind


def measured(rows: Rows) -> Latencies | None:
    """Of an open load whose requests all ended well; None where one did not, as it has no latency."""
    if not len(rows) or (rows["status"] != Status.OK).any():
        return None
    return _latencies((rows["done_ns"] - rows["intended_ns"])[compared(rows)] / 1e6)


def foreseen(rows: Rows, log: Log, batcher: Batcher, overheads: Overheads, *, faster: float = 1.0) -> Latencies | None:
    """Of the same requests, by the simulator: sent when they were, batches as long as the server logged them.

    A batch's time is the mean of its size times how much the logged batch nearest to its start was off that; so the
    time of a size that only the simulator forms is known, and a freeze of the machine meets the requests that it met.
    `faster` lets the same requests come at that multiple of their rate, each sent as late as it was. None where the log
    holds no batch of the load.
    """
    if not len(rows):
        return None
    first_ns = int(rows["intended_ns"].min())
    executed = log.ended(first_ns, int(rows["done_ns"].max()))
    if not executed.size:
        return None
    mean_s, noise = service_times(executed, batcher.max_batch)
    due_s = (rows["intended_ns"] - first_ns) / 1e9 / faster
    sent_s = due_s + (rows["sent_ns"] - rows["intended_ns"]) / 1e9
    order = np.argsort(sent_s, kind="stable")
    simulated = open_loop(
        sent_s[order], batcher, Service.of(batcher, lambda size: float(mean_s[size - 1])), overheads,
        items=rows["items"][order].astype(np.int32), noise=noise, noise_at_s=(executed[:, 0] - first_ns) / 1e9 / faster,
    )  # fmt: skip
    since_intended_s = simulated.done_s - due_s[order]
    return _latencies(since_intended_s[compared(rows)[order]] * 1e3)


def service_times(executed: Executions, max_batch: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean seconds by batch size (between those that were seen, on a line), and each batch's own time over it."""
    seconds, items = (executed[:, 1] - executed[:, 0]) / 1e9, executed[:, 2]
    seen = np.unique(items)
    means = np.array([seconds[items == size].mean() for size in seen])
    mean_s = np.interp(np.arange(1, max_batch + 1), seen, means)
    return mean_s, seconds / mean_s[items - 1]


def _latencies(ms: npt.NDArray[np.float64]) -> Latencies:
    return Latencies(mean=float(ms.mean()), p99=float(np.percentile(ms, 99, method="inverted_cdf")))
