"""The compiled event loop against a slow one that is written for reading: the same rules, nothing shared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brim.records import Status
from queueing.batcher import Batcher, Service, open_loop


@dataclass(slots=True)
class Batch:
    requests: list[int]
    size: int
    factor: float
    left: float = 1.0


def take(carried: list[int], expired: bool, batcher: Batcher) -> int:
    """How many of the queued requests go now."""
    preferred = batcher.preferred or (batcher.max_batch,)
    limit = batcher.max_batch if expired else max(preferred)
    sums = list(accumulate(carried))
    fitting = max(1, sum(items <= limit for items in sums))
    reached = [n for n, items in enumerate(sums[:fitting], start=1) if items in preferred]
    if reached and not expired:
        return reached[-1]
    full = fitting < len(sums) or sums[fitting - 1] >= limit
    return fitting if full or expired or batcher.delay_s == 0 else 0


def slowly(
    arrivals: list[float], items: list[int], batcher: Batcher, seconds: list[list[float]], noise: list[float]
) -> tuple[list[float], list[int], list[int]]:
    """Answer times, outcomes, and the sizes of the batches."""
    done, outcome = [np.nan] * len(arrivals), [Status.OK] * len(arrivals)
    coming, queue, busy, sizes = list(range(len(arrivals))), list[int](), list[Batch](), list[int]()
    numbers, now = count(), 0.0

    def pace(batch: Batch) -> float:
        return seconds[len(busy) - 1][batch.size - 1] * batch.factor

    while coming or queue or busy:
        instants = [now + batch.left * pace(batch) for batch in busy]
        if coming:
            instants.append(arrivals[coming[0]])
        if queue and batcher.delay_s and len(busy) < batcher.instances:
            instants.append(arrivals[queue[0]] + batcher.delay_s)
        then = min(instants)
        ended = [batch for batch, at in zip(busy, instants, strict=False) if at == then]
        for batch in busy:
            batch.left -= (then - now) / pace(batch)
        now = then
        for batch in ended:
            busy.remove(batch)
            for request in batch.requests:
                done[request] = now
        if coming and arrivals[coming[0]] == now:
            request = coming.pop(0)
            if batcher.max_queue and len(queue) == batcher.max_queue:
                done[request], outcome[request] = now, Status.REJECTED
            else:
                queue.append(request)
        while queue and len(busy) < batcher.instances:
            if batcher.timeout_s and now - arrivals[queue[0]] > batcher.timeout_s:
                request = queue.pop(0)
                done[request], outcome[request] = now, Status.REJECTED
                continue
            expired = batcher.delay_s > 0 and now >= arrivals[queue[0]] + batcher.delay_s
            going = take([items[request] for request in queue], expired, batcher)
            if not going:
                break
            together, queue = queue[:going], queue[going:]
            size = sum(items[request] for request in together)
            busy.append(Batch(together, size, noise[next(numbers)]))
            sizes.append(size)
    return done, [int(end) for end in outcome], sizes


servers = st.builds(
    Batcher,
    max_batch=st.integers(4, 8),
    instances=st.integers(1, 3),
    delay_s=st.sampled_from([0.0, 0.3, 2.0]),
    preferred=st.sampled_from([(), (4,), (2, 3)]),
    max_queue=st.sampled_from([0, 2, 5]),
    timeout_s=st.sampled_from([0.0, 0.5, 1.5]),
)


@settings(max_examples=300, deadline=None)
@given(
    batcher=servers,
    requests=st.integers(1, 60),
    rate=st.floats(0.5, 12.0),
    contention=st.sampled_from([0.0, 0.4, 1.0]),
    most_items=st.sampled_from([1, 4]),
    seed=st.integers(0, 10_000),
)
def test_both_serve_every_request_alike(
    batcher: Batcher, requests: int, rate: float, contention: float, most_items: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / rate, requests))
    items = random.integers(1, most_items + 1, requests)
    noise = random.uniform(0.5, 1.5, requests)
    busy, sizes = np.arange(batcher.instances)[:, None], np.arange(1, batcher.max_batch + 1)
    seconds = (1 + contention * busy) * (0.5 + 0.1 * sizes)
    done, outcome, batches = slowly(arrivals.tolist(), items.tolist(), batcher, seconds.tolist(), noise.tolist())
    run = open_loop(arrivals, batcher, Service(seconds), items=items, noise=noise)
    assert run.outcome.tolist() == outcome
    assert run.batch_items.tolist() == batches
    assert run.done_s == pytest.approx(np.array(done), abs=1e-9)
