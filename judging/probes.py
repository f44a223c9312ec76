"""What came of one load, and what that is worth: the same while measuring and on the files of a finished run. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import Literal

from brim.records import Latency, Load, Probe, Window
from judging.evidence import busy_share, effective_batch, queue_ms, server_ms
from judging.tolerances import FAILING


def probe_of(
    load: Load,
    windows: Sequence[Window],
    *,
    instances: int,
    latency_ms: Latency | None = None,
    ci95: tuple[float, float] | None = None,
    lost: bool = False,
) -> Probe:
    """One load by its measured windows; `latency_ms` and `ci95` are of its rows, where those were read.

    Percentiles are never averaged: without rows those of the window with the most requests stand for the load.
    """
    fullest = max(windows, key=lambda w: w.ok, default=None)
    counts: Counter[str] = Counter()
    for window in windows:
        counts.update(window.server.batch_counts if window.server else {})
    return Probe(
        load=load.index,
        purpose=load.purpose,
        generator=load.generator,
        server_start=load.server_start,
        at=load.point,
        items_per_s=mean(w.items_per_s for w in windows) if windows else None,
        ci95=ci95,
        latency_ms=latency_ms or (fullest.latency_ms if fullest else None),
        effective_batch=_mean([effective_batch(w) for w in windows]),
        queue_ms=_mean([queue_ms(w) for w in windows]),
        server_ms=_mean([server_ms(w) for w in windows]),
        server_busy=_mean([busy_share(w, instances) for w in windows]),
        batch_counts=dict(sorted(counts.items(), key=lambda item: int(item[0]))),
        verdict=worth(load, windows, lost=lost),
        reason="; ".join(dict.fromkeys([*(r for w in windows for r in w.reasons), *load.reasons, *load.errors])),
    )


def worth(
    load: Load, windows: Sequence[Window], *, lost: bool = False
) -> Literal["steady", "unstable", "failing", "no_window", "server_lost", "crashed"]:
    """What a load's windows may be used for; `lost`: the server's counters went back meanwhile."""
    if lost or load.ended == "server_lost":
        return "server_lost"
    if load.ended == "crashed":
        return "crashed"
    if not_ok_share(load) > FAILING:
        return "failing"
    if not windows:
        return "no_window"
    return "unstable" if any(w.unstable for w in windows) else "steady"


def not_ok_share(load: Load) -> float:
    """Of the requests that the server had its chance to answer; all, if there were none."""
    not_ok = load.rejected + load.timed_out + load.failed
    return not_ok / (load.ok + not_ok) if load.ok + not_ok else 1.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
