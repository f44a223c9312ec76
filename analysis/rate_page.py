"""What the page says of an open loop, a rate at an SLO and an overload, as text, rows and charts for its templates."""

from __future__ import annotations

from typing import Any

from analysis import rate_charts, rates
from analysis.finished import Finished, asked_open
from analysis.open_loop import ObservedLoop
from analysis.probes import APART
from analysis.words import brief, clean, known, number, plural
from brim.records import Overload, SloRate

#: The page stays of a size that a browser opens at once.
_MOST_ROWS = 200
_MOST_LOOPS = 5


def open_loops(one: Finished, item: str) -> list[dict[str, Any]]:
    """Each open loop that was asked for, the first few."""
    return [_open_loop(seen, item) for seen in one.open_loops[:_MOST_LOOPS]]


def without_requests(one: Finished) -> int:
    """Open loops of which nothing can be said, because the run has kept no request of them."""
    return sum(map(asked_open, one.loads)) - len(one.open_loops)


def apart(one: Finished) -> str:
    """`3 profile, 5 trial and 12 overload loads`: what has no row among the loads with windows."""
    counts = {purpose: sum(load.purpose == purpose for load in one.loads) for purpose in sorted(APART)}
    told = [f"{count} {purpose}" for purpose, count in counts.items() if count]
    return f"{', '.join(told)} {'load' if sum(counts.values()) == 1 else 'loads'}" if told else ""


def _open_loop(seen: ObservedLoop, item: str) -> dict[str, Any]:
    both = list(zip(_percentiles(seen.from_intended), _percentiles(seen.from_sent), strict=True))
    return {
        "at": brief(seen.load.point),
        "load": seen.load.index,
        "rates": rates.rates(seen, item),
        "keeps_up": seen.keeps_up,
        "figures": [
            (f"offered, {item}s/s", number(seen.offered)),
            (f"answered, {item}s/s", number(seen.answered)),
            ("p99 from intended", known(seen.from_intended.p99 if seen.from_intended else None, " ms")),
            ("send lag, p50", f"{number(seen.lag_p50_ms)} ms"),
            ("send lag, p99", f"{number(seen.lag_p99_ms)} ms"),
            ("never sent", f"{seen.load.unsent:,} of {seen.due:,}"),
        ],
        "latencies": [(name, *cells) for name, cells in zip(_NAMES, both, strict=True)],
        "why": rates.why(seen),
        "unsent": rates.unsent(seen) if seen.load.unsent else "",
        "over": rates.over(seen) if seen.limit_ms is not None else "",
        "chart": rate_charts.latency_over_time(seen),
    }


_NAMES = ("mean", "p50", "p90", "p95", "p99", "p99.5", "slowest")


def _percentiles(of: Any) -> list[str]:
    names = ("mean", "p50", "p90", "p95", "p99", "p99_5", "most")
    return [known(getattr(of, name) if of is not None else None) for name in names]


def slo(found: SloRate, item: str) -> dict[str, Any]:
    """The rate at an SLO: headline, chart, trials, what was profiled, and what it is not valid for."""
    resolved = found.items_per_s is not None and found.verdict not in rates.ASKED
    return {
        "title": "The rate that was asked for" if found.verdict in rates.ASKED else "The largest rate",
        "verdict": found.verdict,
        "words": found.verdict.replace("_", " ").upper(),
        "rate": known(found.items_per_s),
        "within": rates.within(found.slo),
        "interval": rates.slo_interval(found) if resolved else "",
        "of_capacity": rates.slo_of_capacity(found),
        "told": "" if found.verdict == "resolved" else rates.slo_verdict(found, item),
        "reasons": [*rates.slo_reasons(found), *rates.slo_checks(found.checks)],
        "chart": rate_charts.over_the_limit(found, item),
        "trials": [
            (t.load, number(t.items_per_s), number(t.seconds), f"{t.requests:,}", rates.share(t.over_share),
             rates.share(t.foreseen_share), rates.share(t.long_run_share))
            for t in found.trials[:_MOST_ROWS]
        ],
        "foreseen": any(t.foreseen_share is not None for t in found.trials),
        "more_trials": max(0, len(found.trials) - _MOST_ROWS),
        "service": [(s.items, s.busy, number(s.ms), f"{s.batches:,}") for s in found.service[:_MOST_ROWS]],
        "overheads": rates.overheads(found.overheads) if found.overheads else "",
        "spent": rates.slo_evidence(found),
        "not_valid_for": rates.slo_scope(found) if found.items_per_s is not None else (),
    }  # fmt: skip


def overload(found: Overload, item: str) -> dict[str, Any]:
    """Goodput of each policy, recovery, and the recommendation with what to type."""
    rows = [
        (clean(p.policy, 64), f"{p.offered / found.items_per_s:.2f}", *map(number, (
            p.offered, p.good, p.late, p.rejected, p.expired, p.failed)))
        for p in found.points[:_MOST_ROWS]
    ]  # fmt: skip
    return {
        "within": rates.within(found.slo),
        "rate": number(found.items_per_s),
        "chart": rate_charts.goodput(found, item),
        "rows": rows,
        "recoveries": [
            (clean(r.policy, 64), f"{r.burst_s:g}", number(r.offered),
             "not within the load" if r.seconds is None else number(r.seconds))
            for r in found.recoveries[:_MOST_ROWS]
        ],
        "config": "\n".join(rates.config_lines(found)),
        "limits": "no limit is recommended" if not (found.max_queue_size or found.queue_timeout_us) else _limits(found),
        "why": clean(found.why, 2000),
    }  # fmt: skip


def _limits(found: Overload) -> str:
    queue = (
        f"at most {plural(found.max_queue_size, 'request')} wait" if found.max_queue_size else "the queue is unlimited"
    )
    timeout = (
        f"none waits longer than {number(found.queue_timeout_us / 1e3)} ms" if found.queue_timeout_us else "no timeout"
    )
    return f"{queue}, {timeout}"
