"""What came of each load: from the answer where it says so, else put together again from loads and windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from brim.records import Load, Probe, Target, Window
from judging.probes import probe_of

#: What is no part of the curve or of its figure: of the rate at an SLO, and of overload.
APART = frozenset({"profile", "trial", "overload"})


def of_loads(loads: Sequence[Load], windows: Sequence[Window], target: Target) -> tuple[Probe, ...]:
    """One probe a load, in the order of the loads; no interval is drawn, because the rows are not read."""
    return tuple(probe_of(load, _of(load, windows), instances=target.instances) for load in loads)


def _of(load: Load, windows: Sequence[Window]) -> list[Window]:
    """The measured windows of a load; those of older files do not name it, but lie inside it."""
    return [
        w
        for w in windows
        if w.kind == "measured"
        and (load.start_ns <= w.start_ns and w.end_ns <= load.end_ns if w.load is None else w.load == load.index)
    ]


def of_windows(all_probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Without the loads of a search for a rate: those are judged by when their requests were due, not by windows."""
    return tuple(probe for probe in all_probes if probe.purpose not in APART)


def outside_ms(probe: Probe) -> float | None:
    """Mean latency that the server's own clock does not see: transport, HTTP in front of it, the client."""
    if probe.latency_ms is None or probe.server_ms is None:
        return None
    return probe.latency_ms.mean - probe.server_ms


def engine_ms(probe: Probe) -> float | None:
    """The server's own duration of a request less its wait: input, inference and output."""
    if probe.server_ms is None or probe.queue_ms is None:
        return None
    return probe.server_ms - probe.queue_ms


def at_the_load_point(probes: Sequence[Probe]) -> list[Probe]:
    """The loads that the figure was taken from."""
    return [probe for probe in probes if probe.purpose == "figure" and probe.items_per_s is not None]


def batch_shares(probes: Sequence[Probe]) -> dict[int, float]:
    """Batch size -> share of the items that were in batches of that size, by size."""
    items: Counter[int] = Counter()
    for probe in probes:
        for size, executions in probe.batch_counts.items():
            items[int(size)] += int(size) * executions
    total = sum(items.values())
    return {size: items[size] / total for size in sorted(items)} if total else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Where a request's mean time goes at one concurrency, in milliseconds."""

    concurrency: int
    queue: float
    engine: float
    outside: float


def splits(probes: Sequence[Probe]) -> list[Split]:
    """One for each concurrency of the curve, ascending; loads at one concurrency are averaged."""
    parts: dict[int, list[tuple[float, float, float]]] = {}
    for probe in probes:
        queue, engine, outside = probe.queue_ms, engine_ms(probe), outside_ms(probe)
        if of_the_curve(probe) and queue is not None and engine is not None and outside is not None:
            parts.setdefault(probe.at.concurrency or 0, []).append((queue, engine, outside))
    means = {n: [mean(column) for column in zip(*there, strict=True)] for n, there in sorted(parts.items())}
    return [Split(concurrency=n, queue=q, engine=e, outside=o) for n, (q, e, o) in means.items()]


def of_the_curve(probe: Probe) -> bool:
    """A load of the search or of the figure: the same way in, by the same generator."""
    return probe.purpose in ("search", "figure") and probe.at.mode == "closed"
