"""The search for the rate at an SLO before its trials: what is sought, the profile of a server, and the SLO itself.

Closed-loop loads come from a Loader; writes nothing. How a profile is judged is judging.slo_model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from brim.records import ServiceTime, Slo, SloRate, Status
from experiments.measure.answer import THROTTLED
from judging.slo_model import PROFILE_S, Profile, fit, ladder, seconds_of
from judging.slo_observed import Floats, Numbers, Observed, ended_otherwise, service_latencies
from judging.slo_predict import REQUESTS
from judging.slo_trials import Answer
from judging.tolerances import FAILING
from queueing.arrivals import highest_random_rate
from queueing.batcher import Batcher

#: Slower servers answer too few requests in a minute for a p99.
SLOW_PER_S, SLOW_PERCENTILE, PERCENTILE = 50.0, 95.0, 99.0
#: Default limit in full-batch times.
LIMIT_BATCHES = 5
#: Of a slow server each load may take so much of the time that there is, for as many full batches.
PROFILE_SHARE, PROFILE_BATCHES = 0.1, 10
#: A part this large is told as the whole.
NEARLY_ALL = 0.995


class Loader(Protocol):
    """What loads a server with single-item requests: the bench, or what simulates one."""

    def closed(self, concurrency: int, seconds: float) -> Observed:
        """So many in flight for so long."""

    def open(self, offsets_ns: Numbers, rate_per_s: float, seconds: float) -> Observed:
        """Requests due at these offsets, at `rate_per_s` on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What the user asks for; None = the default, which depends on the server."""

    limit_ms: float | None = None
    percentile: float | None = None
    seconds: float = 60.0
    model_free: bool = False
    seed: int = 0
    most_per_s: float | None = None  # that the user allows to be sent to this host; None = no limit
    deadline_s: float = math.inf  # of a request; whatever takes longer is cut off
    simulated: int = REQUESTS  # requests behind a prediction

    @property
    def most_tried(self) -> float:
        """The highest rate of random arrivals that keep to what the user allows."""
        return math.inf if self.most_per_s is None else highest_random_rate(self.most_per_s)

    @property
    def capped(self) -> str:
        """What else may be why requests are late; nothing without a limit."""
        most = self.most_per_s
        return "" if most is None else f"; max_rate_per_s ({most:g}/s) holds requests back, too"

    @property
    def not_in_time(self) -> str:
        """The reason where more seconds would help."""
        return f"{SloRate.NOT_IN_TIME} {self.seconds:g} s"

    @property
    def slo(self) -> Slo | None:
        """In the user's own words; None = the default, which the profile gives."""
        return Slo(limit_ms=self.limit_ms, percentile=self.percentile or PERCENTILE) if self.limit_ms else None


Ending = Literal["resolved", "not_resolvable", "unattainable", "failing", "server_lost", "aborted"]


class End(Exception):
    """The search is over before its trials tell a rate; an answer without an interval is a bound."""

    def __init__(self, verdict: Ending, reason: str, *, slo: Slo | None = None, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.verdict: Ending = verdict
        self.reason, self.slo, self.answer = reason, slo, answer


def profiled(
    loader: Loader,
    batcher: Batcher,
    sought: Sought,
    loads: list[tuple[int, Observed]],
    *,
    left_s: Callable[[], float],
    progress: Callable[[str], None],
) -> Profile:
    """The profile out of `loads`, to which those are added that it lacks; End if they tell of no capacity."""
    rungs = ladder(batcher)
    rungs = (rungs[0], rungs[-1]) if sought.model_free else rungs
    seconds = PROFILE_S
    for in_flight in rungs:
        load = next((load for number, load in loads if number == in_flight), None)
        if load is None:
            if in_flight > 1 and left_s() < seconds:
                raise _too_slow(alone(loads), sought)
            progress(f"profile: {in_flight} in flight, {seconds:.0f} s")
            load = loader.closed(in_flight, seconds)
            loads.append((in_flight, load))
        if in_flight == 1:
            seconds = _judge_single(load, batcher, sought)
    profile = fit(loads, batcher)
    if not profile.capacity > 0:
        _, fullest = max(loads, key=lambda one: one[0])
        if _fails(fullest):
            raise End("failing", f"of {rungs[-1]} requests in flight none were answered well{_refusals(fullest)}")
        raise _too_slow(alone(loads), sought)
    return profile


def alone(loads: Sequence[tuple[int, Observed]]) -> Observed:
    """The load of one request at a time."""
    return next(load for in_flight, load in loads if in_flight == 1)


def _judge_single(load: Observed, batcher: Batcher, sought: Sought) -> float:
    """Seconds of the loads to come, by how long one request takes."""
    if load.not_ok_share <= FAILING:
        single_s = float(_answered_s(load).mean())
        longest_s = min(PROFILE_BATCHES * batcher.max_batch * single_s, PROFILE_SHARE * sought.seconds)
        return max(seconds_of(batcher, single_s), longest_s)
    if _fails(load):
        raise End("failing", f"{load.not_ok_share:.1%} of single requests were not answered well{_refusals(load)}")
    raise _too_slow(load, sought)


def _answered_s(load: Observed) -> Floats:
    """How long requests took that were answered well; of a slow server all, as none comes behind the warm-up."""
    taken_s = service_latencies(load)
    rows = load.rows[load.rows["status"] == Status.OK]
    return taken_s if taken_s.size else (rows["done_ns"] - rows["sent_ns"]) / 1e9


def _fails(load: Observed) -> bool:
    """Whether the server answers badly; else it is only too slow for the load, or for the deadline of a request."""
    status = load.rows["status"]
    return not status.size or float(np.isin(status, (Status.REJECTED, Status.FAILED)).mean()) > FAILING


def _refusals(load: Observed) -> str:
    told = ended_otherwise(load.rows["status"])
    return f": {told}" if told else ""


def _too_slow(single: Observed, sought: Sought) -> End:
    """Of a server that answers well, but hardly anything within a load."""
    taken_s: Floats = (single.rows["done_ns"] - single.rows["sent_ns"]) / 1e9
    single_s = float(np.median(taken_s))
    if sought.slo is not None and single_s * 1e3 > sought.slo.limit_ms:
        return _unattainable(single_s * 1e3, sought.slo, ())
    # A full batch takes no less than a single request: the default limit is at least that.
    least = Slo(limit_ms=rounded(LIMIT_BATCHES * single_s * 1e3), percentile=sought.percentile or SLOW_PERCENTILE)
    return End(
        "not_resolvable",
        f"{sought.not_in_time}: a single request takes {single_s:.3g} s, too few are answered in that time; "
        "more --slo-seconds may do",
        slo=sought.slo or least,
    )


def held_back(profile: Profile, sought: Sought) -> bool:
    """The loads came as fast as the user allows: what they show is no capacity of the server."""
    return sought.most_per_s is not None and profile.capacity >= THROTTLED * sought.most_per_s


def slo_of(profile: Profile, batcher: Batcher, sought: Sought) -> Slo:
    """The SLO that is asked for, or the default for this server."""
    full_ms = batcher.max_batch * batcher.instances / profile.capacity * 1e3
    if profile.model and held_back(profile, sought):
        full_ms = float(profile.model.service.seconds[-1, -1]) * 1e3
    percentile = SLOW_PERCENTILE if profile.capacity < SLOW_PER_S else PERCENTILE
    slo = Slo(limit_ms=sought.limit_ms or rounded(LIMIT_BATCHES * full_ms), percentile=sought.percentile or percentile)
    if slo.limit_ms >= 1e3 * sought.deadline_s:
        raise End(
            "not_resolvable",
            f"the limit of {slo.limit_ms:g} ms is beyond the {sought.deadline_s:g} s after which a request is cut off; "
            "raise request_timeout_seconds in a --loads file",
            slo=slo,
        )
    return slo


def rounded(ms: float) -> float:
    """A limit that can be told."""
    return float(f"{ms:.2g}")


def require_attainable(single: Observed, slo: Slo, table: Sequence[ServiceTime]) -> None:
    """End if not even a request alone is answered within the limit."""
    median_ms = float(np.median(_answered_s(single))) * 1e3
    if median_ms > slo.limit_ms:
        raise _unattainable(median_ms, slo, table)


def _unattainable(single_ms: float, slo: Slo, table: Sequence[ServiceTime]) -> End:
    served_ms = table[0].ms if table else 0.0
    # The mean of a batch may exceed the median of a request, by noise.
    part = "all" if served_ms >= NEARLY_ALL * single_ms else f"{served_ms:.4g} ms"
    serves = f", {part} of that in the engine" if table else ""
    return End(
        "unattainable",
        f"a single request alone takes {single_ms:.4g} ms{serves}: no rate is answered within "
        f"{slo.limit_ms:g} ms; ask for more than its service time",
        slo=slo,
    )
