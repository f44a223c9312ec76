"""How an open loop, a rate at an SLO and an overload are put into words, on the terminal and in the page.

Reads records and what an open loop was summed up to, writes nothing. Words of others pass through `clean`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.open_loop import ObservedLoop, Percentiles
from analysis.words import clean, number, plural, scope
from brim.records import Check, Overheads, Overload, OverloadPoint, Recovery, Slo, SloRate

#: Both latencies count as the same up to this much, or this share of the slower.
SAME_MS, SAME_SHARE = 1.0, 0.05
#: Verdicts on a rate that was asked for: it is what was sent, and nothing was searched.
ASKED = ("met", "missed")


# ---------------------------------------------------------------------------- the rate at an SLO


def within(slo: Slo) -> str:
    """`within 50 ms at p99`."""
    return f"within {slo.limit_ms:g} ms at p{slo.percentile:g}"


def slo_lines(found: SloRate, item: str) -> list[str]:
    """The headline, then what it rests on and what it is not valid for."""
    return [
        slo_headline(found, item),
        *slo_reasons(found),
        *slo_checks(found.checks),
        *([slo_evidence(found)] if slo_evidence(found) else []),
        *([scope(slo_scope(found))] if found.items_per_s is not None else []),
    ]


def slo_headline(found: SloRate, item: str) -> str:
    """`387 images/s within 50 ms at p99 (381 to 392, 95% given the model), 0.84 of its capacity`, or why not."""
    if found.items_per_s is None or found.verdict in ASKED:
        return slo_verdict(found, item)
    told = f"{number(found.items_per_s)} {_unit(item)} {within(found.slo)} ({slo_interval(found)})"
    part = slo_of_capacity(found)
    told += f", {part}" if part else ""
    return told if found.verdict == "resolved" else f"{told}; {slo_verdict(found, item)}"


def slo_interval(found: SloRate) -> str:
    """`381 to 392, 95% given the queueing model`."""
    if found.ci95 is None:
        return "no interval"
    given = "given the queueing model" if found.given == "model" else "by the data alone"
    return f"{number(found.ci95[0])} to {number(found.ci95[1])}, 95% {given}"


def slo_of_capacity(found: SloRate) -> str:
    """`0.84 of its capacity`, or nothing where either is not known."""
    if found.items_per_s is None or not found.capacity_items_per_s:
        return ""
    return f"{found.items_per_s / found.capacity_items_per_s:.2f} of its capacity"


def slo_verdict(found: SloRate, item: str) -> str:
    """What the search came to, in a sentence without its reason."""
    slo, rate = within(found.slo), f"{number(found.items_per_s or 0.0)} {_unit(item)}"
    return {
        "met": f"{rate} are served {slo}",
        "missed": f"{rate} are NOT served {slo}",
        "resolved": f"the largest rate {slo} was found",
        "not_resolvable": f"the largest rate {slo} cannot be told",
        "unattainable": f"no rate is served {slo}",
        "failing": f"no rate {slo}: the server did not answer well",
        "server_lost": f"no rate {slo}: the server was lost",
        "aborted": f"no rate {slo}: stopped before it was found",
    }[found.verdict]


def slo_reasons(found: SloRate) -> list[str]:
    """The search's own reason, and why the queueing model was not used, where it was rejected."""
    rejected = "queueing model rejected: " + clean(found.model_rejected)
    return [*([clean(found.reason)] if found.reason else []), *([rejected] if found.model_rejected else [])]


def slo_checks(made: Sequence[Check]) -> list[str]:
    """`checks: 1 2 held`, and a line for each that is broken; nothing where nothing could be checked."""
    held = " ".join(str(check.rule) for check in made if check.state == "held")
    broken = [f"check {c.rule} {c.name} BROKEN: {clean(c.reason)}" for c in made if c.state == "broken"]
    return [*([f"checks: {held} held"] if held else []), *broken]


def slo_evidence(found: SloRate) -> str:
    """`capacity 461 images/s; 5 trials of 5,800 requests in 51 s of load; 63 s spent`."""
    told = []
    if found.capacity_items_per_s is not None:
        told.append(f"capacity {number(found.capacity_items_per_s)}/s")
    if found.trials:
        requests, seconds = sum(t.requests for t in found.trials), sum(t.seconds for t in found.trials)
        told.append(f"{plural(len(found.trials), 'trial')}, {plural(requests, 'request')} in {number(seconds)} s")
    return "; ".join([*told, f"{number(found.seconds_spent)} s spent"]) if found.seconds_spent else "; ".join(told)


def slo_scope(found: SloRate) -> tuple[str, ...]:
    """What the rate must not be used for, each in a phrase that follows `not valid for`."""
    said = [
        "any other rate, or arrivals by another law"
        if found.verdict in ASKED
        else "arrivals that are not Poisson: bursts meet the same SLO only at a lower rate",
        "another payload, way in, limit or percentile",
        "users beyond a network: one client machine sent everything, and latency ends there",
        "another machine, or another start of the server",
    ]
    if found.given == "model":
        said.append("a server that the queueing model does not describe: the interval holds given the model")
    return tuple(said)


def overheads(of: Overheads) -> str:
    """What a batch costs beyond its service time, in a sentence."""
    return (
        f"Beside it a batch holds its instance for {number(of.occupancy_ms)} ms and {number(of.occupancy_per_item_ms)} "
        f"ms for each item; each answer takes {number(of.additive_ms)} ms more without holding one. "
        "Measured in closed loop beforehand, then frozen."
    )


# ---------------------------------------------------------------------------- overload


def overload_lines(found: Overload, item: str) -> list[str]:
    """Goodput of each policy at the highest rate it met, recovery, and the recommendation with what to type."""
    rate = f"{number(found.items_per_s)} {_unit(item)}"
    return [
        f"overload, against {rate} {within(found.slo)}:",
        *(f"  {overload_point(found, point)}" for point in highest(found.points)),
        *(f"  {recovery(one)}" for one in found.recoveries),
        f"recommended: {', '.join(config_lines(found))}",
        *([f"  {clean(found.why, 2000)}"] if found.why else []),
    ]


def highest(points: Sequence[OverloadPoint]) -> list[OverloadPoint]:
    """Of each policy the point with the highest offered rate, in the order in which policies come."""
    most: dict[str, OverloadPoint] = {}
    for point in points:
        if point.policy not in most or point.offered > most[point.policy].offered:
            most[point.policy] = point
    return list(most.values())


def overload_point(found: Overload, point: OverloadPoint) -> str:
    """`b8 at 2.00 x: 120/s of 774/s in time; late 600, rejected 0, expired 54, failed 0`."""
    rest = ", ".join(
        f"{name} {number(value)}"
        for name, value in (
            ("late", point.late), ("rejected", point.rejected), ("expired", point.expired), ("failed", point.failed),
        )
    )  # fmt: skip
    asked = f"{number(point.good)}/s of {number(point.offered)}/s in time"
    return f"{clean(point.policy, 64)} at {point.offered / found.items_per_s:.2f} x: {asked}; {rest}"


def recovery(one: Recovery) -> str:
    """`b8: in time again 2.4 s after a burst of 5 s at 774/s`."""
    burst = f"a burst of {one.burst_s:g} s at {number(one.offered)}/s"
    if one.seconds is None:
        return f"{clean(one.policy, 64)}: not in time again within the load after {burst}"
    return f"{clean(one.policy, 64)}: in time again {number(one.seconds)} s after {burst}"


def config_lines(found: Overload) -> tuple[str, str]:
    """What to type into a table of configs.toml."""
    return f"max_queue_size = {found.max_queue_size}", f"queue_timeout_us = {found.queue_timeout_us}"


# ---------------------------------------------------------------------------- an open loop


def open_lines(seen: ObservedLoop, item: str) -> list[str]:
    """Offered against answered, latency from both instants, and why they differ or do not."""
    return [
        f"offered {rates(seen, item)}",
        *_latencies(seen),
        f"sent late by {number(seen.lag_p50_ms)} ms at p50, {number(seen.lag_p99_ms)} ms at p99; {unsent(seen)}",
        *([over(seen)] if seen.limit_ms is not None else []),
        *why(seen),
    ]


def rates(seen: ObservedLoop, item: str) -> str:
    """`300 images/s (poisson), answered 299 images/s: the server keeps up`."""
    law = clean(str(seen.load.point.arrivals), 20)
    verdict = "the server keeps up" if seen.keeps_up else "; ".join(clean(reason) for reason in seen.reasons)
    return f"{number(seen.offered)} {_unit(item)} ({law}), answered {number(seen.answered)} {_unit(item)}: {verdict}"


def unsent(seen: ObservedLoop) -> str:
    """`all 9,000 sent`, or how many were not."""
    left = seen.due - seen.load.sent
    if left <= 0:
        return f"all {seen.due:,} were sent"
    return f"{left:,} of {seen.due:,} never sent: they are over any limit, and in no percentile"


def over(seen: ObservedLoop) -> str:
    """`0.8% of the whole load took longer than 50 ms or was not answered well`."""
    return (
        f"{share(seen.over_share)} of the whole load, its first requests included, took longer than "
        f"{seen.limit_ms:g} ms or was not answered well"
    )


def why(seen: ObservedLoop) -> list[str]:
    """Why the two latencies differ or do not, and what a closed loop would not have shown, in the run's own numbers."""
    intended, sent = seen.from_intended, seen.from_sent
    if intended is None or sent is None:
        return ["nothing was answered"]
    name, intended_ms, sent_ms = max(_tails(intended, sent), key=lambda tail: tail[1] - tail[2])
    if intended_ms - sent_ms > max(SAME_MS, SAME_SHARE * intended_ms):
        told = (
            f"requests were sent up to {number(seen.lag_most_ms)} ms after they were due; counting from the actual "
            f"send leaves that wait out: a {name} of {number(intended_ms)} ms then looks like {number(sent_ms)} ms "
            "(coordinated omission)"
        )
    else:
        told = "requests were sent when they were due, so both ways of counting agree"
    return [told, *([_stall(seen)] if seen.stall else [])]


def _tails(intended: Percentiles, sent: Percentiles) -> list[tuple[str, float, float]]:
    return [
        ("p95", intended.p95, sent.p95), ("p99", intended.p99, sent.p99), ("p99.5", intended.p99_5, sent.p99_5),
    ]  # fmt: skip


def _stall(seen: ObservedLoop) -> str:
    """The run's longest silence, and how little of it a closed loop would have counted."""
    stall, median_ms = seen.stall, seen.from_intended.p50 if seen.from_intended else 0.0
    assert stall is not None
    requests_per_s = seen.due / seen.seconds
    in_flight = max(1, math.ceil(requests_per_s * median_ms / 1e3))  # Little's law, while nothing stalls
    return (
        f"for {number(stall.seconds)} s from {number(stall.at_s)} s on the server answered nothing while "
        f"{plural(stall.due, 'request')} came due, {share(stall.due / seen.due)} of all: each waited, and the "
        f"percentiles above {_top(stall.due / seen.due)} show it. A closed loop of {plural(in_flight, 'request')} in "
        f"flight, which is what this rate needs, sends nothing while it waits: it would have counted {in_flight} slow "
        f"of about {seen.due:,} ({share(in_flight / seen.due)}), and its p99.5 "
        f"{'would not show' if in_flight < 0.005 * seen.due else 'would barely show'} the stall"
    )


def _top(part: float) -> str:
    return f"p{100 * (1 - part):.3g}"


def _latencies(seen: ObservedLoop) -> list[str]:
    rows = (("from intended", seen.from_intended), ("from sent", seen.from_sent))
    return [
        f"latency {name}: mean {number(p.mean)}, p50 {number(p.p50)}, p90 {number(p.p90)}, p95 {number(p.p95)}, "
        f"p99 {number(p.p99)}, p99.5 {number(p.p99_5)} ms"
        for name, p in rows
        if p is not None
    ]


def share(value: float | None) -> str:
    """A small share in percent, to two digits: `0.83%`; a dash where there is none."""
    if value is None:
        return "–"
    percent = 100 * value
    return (
        f"{percent:.0f}%" if percent >= 10 or not percent else f"{percent:.1f}%" if percent >= 1 else f"{percent:.2g}%"
    )


def _unit(item: str) -> str:
    return f"{clean(item, 24)}s/s"
