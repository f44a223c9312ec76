"""A batch server of exactly known capacity, simulated event by event: rows and reads without a server."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from brim.records import StatsRead, Status
from judging.rows import ROW_DTYPE, Rows

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a closed loop of single-item requests saw, and what the server counted."""

    rows: Rows
    reads: tuple[StatsRead, ...]
    start_ns: int
    until_ns: int  # when sending stopped; what was in flight then drained


def constant(service_ns: int) -> Callable[[float], int]:
    return lambda _: service_ns


def closed_loop(
    *,
    concurrency: int,
    max_batch: int,
    service: Callable[[float], int],
    seconds: float,
    instances: int = 1,
    spread_ns: int = 0,
    start_ns: int = 5 * SECOND,
    read_every_ns: int = SECOND,
    first_read: float = 1 / 3,
) -> Simulated:
    """`concurrency` users without think time; an idle instance takes at once what waits, up to `max_batch`.

    `service` maps seconds since the start to the nanoseconds of a batch that starts then; the answers of a
    batch reach the client spread evenly over `spread_ns`, and each user asks again the moment it is answered.
    The first read within the load comes `first_read` intervals after its start.
    """
    until_ns = start_ns + round(seconds * SECOND)
    events: list[tuple[int, int, int]] = [(start_ns, 1, user) for user in range(concurrency)]
    heapq.heapify(events)  # (when, 0 = an instance is done | 1 = a request arrives, user)
    waiting: list[int] = []
    idle, rows, ends = instances, [], []
    while events:
        now, kind, _ = heapq.heappop(events)
        if kind == 0:
            idle += 1
        elif now < until_ns:
            waiting.append(now)
        while events and events[0][0] == now:
            _, kind, _ = heapq.heappop(events)
            if kind == 0:
                idle += 1
            elif now < until_ns:
                waiting.append(now)
        while idle and waiting:
            batch, waiting = waiting[:max_batch], waiting[max_batch:]
            lasts = service((now - start_ns) / SECOND)
            idle -= 1
            heapq.heappush(events, (now + lasts, 0, -1))
            ends.append((now + lasts, len(batch), lasts, sum(now - sent for sent in batch)))
            for place, sent in enumerate(batch):
                done = now + lasts + place * spread_ns // len(batch)
                rows.append((sent, sent, done, 1, 0, Status.OK))
                heapq.heappush(events, (done, 1, place))
    table = np.array(rows, dtype=ROW_DTYPE).view(Rows)
    table = table[np.argsort(table["done_ns"], kind="stable")]
    return Simulated(
        rows=table,
        reads=_reads(ends, start_ns, round(first_read * read_every_ns), read_every_ns),
        start_ns=start_ns,
        until_ns=until_ns,
    )


def _reads(ends: list[tuple[int, int, int, int]], start_ns: int, after_ns: int, every_ns: int) -> tuple[StatsRead, ...]:
    """One read before the load, then one every `every_ns`, the last after the drain; each takes 1 ms."""
    last_ns = max(when for when, *_ in ends) + every_ns
    instants = [start_ns - every_ns // 2, *range(start_ns + after_ns, last_ns + every_ns, every_ns)]
    return tuple(_read(ends, at, start_ns) for at in instants)


def _read(ends: list[tuple[int, int, int, int]], at_ns: int, start_ns: int) -> StatsRead:
    past = [end for end in ends if end[0] <= at_ns]
    sizes = sorted({size for _, size, _, _ in past})
    seconds = max(0.0, (at_ns - start_ns) / SECOND)
    items = sum(size for _, size, _, _ in past)
    queue_ns = sum(queued for *_, queued in past)
    return StatsRead(
        before_ns=at_ns - 500_000,
        after_ns=at_ns + 500_000,
        inference_count=items,
        execution_count=len(past),
        success_count=items,
        fail_count=0,
        queue_ns=queue_ns,
        request_ns=queue_ns + sum(size * lasts for _, size, lasts, _ in past),
        batch_counts={str(size): sum(1 for end in past if end[1] == size) for size in sizes},
        busy_ns=sum(lasts for _, _, lasts, _ in past),
        infer_ns=sum(lasts for _, _, lasts, _ in past),
        client_cpu_s=0.1 * seconds,
        server_cpu_s=1.0 * seconds,
        machine_busy_s=1.2 * seconds,
        machine_total_s=2.0 * seconds,
    )


def a_read(at_ns: int, done: int, *, ms: float) -> StatsRead:
    """Of a server that has answered so many single requests and had each for `ms` by its own clock."""
    return StatsRead(
        before_ns=at_ns, after_ns=at_ns, inference_count=done, execution_count=done, success_count=done, fail_count=0,
        queue_ns=0, request_ns=round(done * ms * 1e6), batch_counts={}, busy_ns=0, infer_ns=0, client_cpu_s=0.0,
        server_cpu_s=None, machine_busy_s=None, machine_total_s=None,
    )  # fmt: skip
