"""Every load of a measurement as the report shows it, with what it is worth and why. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Literal

from brim.records import Probe, Target
from experiments.measure.gathered import MeasuredLoad, latency_of, mean
from judging import interval
from judging.evidence import queue_ms, server_ms
from judging.tolerances import FAILING


def probe(load: MeasuredLoad, target: Target) -> Probe:
    """One load as the report shows it, whatever came of it."""
    windows, about = load.measured, load.load
    servers = [w.server for w in windows if w.server]
    within = interval.within_run([interval.stretch(load.rows, windows, load.period_ns)]) if windows else None
    counts: Counter[str] = Counter()
    for server in servers:
        counts.update(server.batch_counts)
    return Probe(
        load=about.index,
        purpose=about.purpose,
        generator=about.generator,
        server_start=about.server_start,
        at=about.point,
        items_per_s=statistics.mean(w.items_per_s for w in windows) if windows else None,
        ci95=within.bounds if within else None,
        latency_ms=latency_of([load]),
        effective_batch=load.effective_batch,
        queue_ms=mean([queue_ms(w) for w in windows]),
        server_ms=mean([server_ms(w) for w in windows]),
        server_busy=load.busy_share(target.instances),
        batch_counts=dict(sorted(counts.items(), key=lambda item: int(item[0]))),
        verdict=_worth(load),
        reason="; ".join(load.reasons),
    )


def _worth(load: MeasuredLoad) -> Literal["steady", "unstable", "failing", "no_window", "server_lost", "crashed"]:
    if load.lost:
        return "server_lost"
    if load.load.ended == "crashed":
        return "crashed"
    if load.not_ok_share > FAILING:
        return "failing"
    if not load.measured:
        return "no_window"
    return "unstable" if any(w.unstable for w in load.measured) else "steady"
