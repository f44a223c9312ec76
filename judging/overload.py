"""What a server does beyond its rate: goodput of a stretch of open-loop load, and recovery from a burst.

Reads the rows of a load, its schedule and what was said of its errors; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

from brim.records import OverloadPoint, Recovery, Slo, Status
from judging.slo_observed import Floats, Observed, latencies
from judging.tolerances import RECOVERED_REQUESTS, RECOVERED_S

#: Triton answers both with HTTP 503 or UNAVAILABLE; only its words tell a full queue from a wait that was too long.
QUEUE_FULL, QUEUE_TIMEOUT = "Exceeds maximum queue size", "Request timeout expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """The part of a load that comes faster than the server can follow, in seconds from its start."""

    from_s: float
    until_s: float

    @property
    def seconds(self) -> float:
        return self.until_s - self.from_s


def goodput(
    seen: Observed,
    errors: Mapping[str, int],
    slo: Slo,
    *,
    policy: str,
    from_s: float,
    until_s: float,
) -> OverloadPoint:
    """What became of the requests, of one item each, that were due in [from_s, until_s), in items a second of it.

    `errors` is what the server or the socket said in the whole load -> how often.
    """
    due_s, good_ones = in_time(seen, slo)
    due = (due_s >= from_s) & (due_s < until_s)
    since_s = (seen.rows["intended_ns"] - seen.start_ns) / 1e9
    status = seen.rows["status"][(since_s >= from_s) & (since_s < until_s)]
    good = int(good_ones[due].sum())
    late = int((status == Status.OK).sum()) - good
    refused = int((status == Status.REJECTED).sum())
    of_size, of_time = refusals(seen, errors)
    full = round(refused * of_size)
    expired = min(round(refused * of_time), refused - full)
    rate = 1 / (until_s - from_s)
    return OverloadPoint(
        policy=policy,
        offered=int(due.sum()) * rate,
        good=good * rate,
        late=late * rate,
        rejected=full * rate,
        expired=expired * rate,
        failed=(int(due.sum()) - good - late - full - expired) * rate,
        load=seen.load,
    )


def in_time(seen: Observed, slo: Slo) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """When each request of the schedule was due, in seconds from the start, and whether it was answered in time."""
    assert seen.offsets_ns is not None  # of an open loop
    return seen.offsets_ns / 1e9, latencies(seen) <= slo.limit_ms / 1e3


def refusals(seen: Observed, errors: Mapping[str, int]) -> tuple[float, float]:
    """Of the rejected requests of a load: the share that met a full queue, and the share that waited too long in it.

    What is left of 1 was refused in other words, for a reason that is not known to be the queue's.
    """
    full, expired = (sum(n for text, n in errors.items() if words in text) for words in (QUEUE_FULL, QUEUE_TIMEOUT))
    refused = max(1, full + expired, int((seen.rows["status"] == Status.REJECTED).sum()))
    return full / refused, expired / refused


def recovery(seen: Observed, slo: Slo, burst: Burst, *, policy: str, offered: float) -> Recovery:
    """Seconds from the end of the burst until requests are in time again.

    That is when the first request is due from which on the SLO holds for a second and at least 20 requests: 0 if that
    is the first one behind the burst, None if the load ended before.
    """
    due_s, good = in_time(seen, slo)
    after = due_s >= burst.until_s
    due_s, good = due_s[after], good[after]
    begins = _recovered(due_s, good, slo)
    seconds = None if begins is None else float(due_s[begins] - burst.until_s) if begins else 0.0
    return Recovery(policy=policy, burst_s=burst.seconds, offered=offered, seconds=seconds)


def _recovered(due_s: Floats, good: npt.NDArray[np.bool_], slo: Slo) -> int | None:
    """The first request from which on the SLO holds for long enough; None if the record shows no such one."""
    first: npt.NDArray[Any] = np.arange(len(due_s))
    last = np.maximum(first + RECOVERED_REQUESTS, np.searchsorted(due_s, due_s + RECOVERED_S))
    shown = (last <= len(due_s)) & (due_s + RECOVERED_S <= (due_s[-1] if len(due_s) else 0.0)) & good
    bad = np.concatenate(([0], np.cumsum(~good)))
    candidates = np.flatnonzero(shown)
    missed = bad[last[candidates]] - bad[candidates]
    allowed = [floor(n * slo.over_allowed) for n in (last - first)[candidates]]
    held = candidates[missed <= allowed]
    return int(held[0]) if held.size else None
