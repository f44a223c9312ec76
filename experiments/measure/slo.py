"""The search for the largest rate that meets an SLO: profile, predict, verify; data alone where the model does not fit.

Loads come from a Probe, time from a clock; writes nothing. What is judged, and how, is judging.slo_*'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from brim.errors import Interrupted, Lost, NoValidNumber
from brim.records import Slo, SloRate, Status
from judging.slo_model import PROFILE_S, Model, Profile, fit, ladder, seconds_of
from judging.slo_observed import Numbers, Observed, latencies, service_latencies
from judging.slo_predict import LEAST_SHARE, REQUESTS, Foreseen, foresee, relax_s, typical_schedule
from judging.slo_trials import (
    Answer,
    Trial,
    given_data,
    given_model,
    misfit,
    next_rate,
    recorded,
    segments,
    warm_s,
)  # fmt: skip
from judging.tolerances import FAILING
from queueing import arrivals
from queueing.batcher import Batcher

ALPHA = 0.05
#: An answer this near to where it was verified, and this narrow, is not verified again.
NEAR_ENOUGH = 0.02
#: Trials further from the answer are not pooled with it: what they say of it is an extrapolation.
POOLED = 0.05
#: A wider interval is no answer.
RESOLVED = 0.10
#: Slower servers answer too few requests in a minute for a p99.
SLOW_PER_S, SLOW_PERCENTILE, PERCENTILE = 50.0, 95.0, 99.0
#: Default limit in full-batch times.
LIMIT_BATCHES = 5
#: What a load takes besides its own seconds: its processes start, the last answers come.
AROUND_S = 2.5
#: Of the time that is left, the first trial's share: the second one, where the first points to, has the rest.
FIRST_SHARE = 0.55
#: A trial is long enough with so many requests over the limit, as many times a queue's memory, and so many seconds.
ENOUGH_OVER, ENOUGH_RELAXES, ENOUGH_S = 200, 100, 10.0
#: A trial of the data alone that only points the way.
POINTING_RELAXES, POINTING_S = 20, 4.0
#: Shorter than this, nothing is learned.
LEAST_S = 3.0
DATA_SEGMENTS, TRIALS_MOST = 10, 8
#: Here what a trial says of a rate further away is less of an error than its own.
POOLED_DATA = 0.10
#: Requests that leave later than this share of the limit make latencies the client's.
LATE_SHARE = 0.05


class Probe(Protocol):
    """Whatever can be loaded with single-item requests: the bench, or a simulated server."""

    def closed(self, concurrency: int, seconds: float) -> Observed:
        """So many in flight for so long."""

    def open(self, offsets_ns: Numbers, rate_per_s: float, seconds: float) -> Observed:
        """Requests due at these offsets, at `rate_per_s` on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user asks for; None = the default, which depends on the server."""

    limit_ms: float | None = None
    percentile: float | None = None
    seconds: float = 60.0
    model_free: bool = False
    seed: int = 0
    simulated: int = REQUESTS  # requests behind a prediction


Ending = Literal["resolved", "not_resolvable", "unattainable", "failing", "server_lost", "aborted"]


class _End(Exception):
    """The search is over before it has an answer."""

    def __init__(self, verdict: Ending, reason: str) -> None:
        super().__init__(reason)
        self.verdict: Ending = verdict
        self.reason = reason


def search(
    probe: Probe,
    batcher: Batcher,
    wanted: Wanted,
    *,
    progress: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    ready: Sequence[tuple[int, Observed]] = (),
    stopped: Callable[[Interrupted], None] = lambda signal: None,
) -> SloRate:
    """The largest rate that meets the SLO, with what it rests on; `ready` are closed-loop loads that were made already.

    A server that goes away or a signal (told to `stopped`) ends it with what was found so far. NoValidNumber if that
    happens before the default SLO is known.
    """
    at = _Search(
        probe=probe,
        batcher=batcher,
        wanted=wanted,
        progress=progress,
        clock=clock,
        loads=list(ready),
        started_s=clock(),
    )
    try:
        return at.run()
    except _End as end:
        return at.told(end.verdict, end.reason)
    except Lost as error:
        return at.told("server_lost", str(error))
    except Interrupted as error:
        stopped(error)
        return at.told("aborted", str(error))


@dataclass(slots=True, kw_only=True)
class _Search:
    """What one search has found so far."""

    probe: Probe
    batcher: Batcher
    wanted: Wanted
    progress: Callable[[str], None]
    clock: Callable[[], float]
    loads: list[tuple[int, Observed]]
    started_s: float
    profile: Profile | None = None
    slo: Slo | None = None
    foreseen: Foreseen | None = None
    trials: list[Trial] = field(default_factory=list)
    rejected: str = ""
    late: str = ""

    def run(self) -> SloRate:
        """Profile, then the model's way while it fits, else the data's."""
        profile = self._profiled()
        slo = self.slo = self._slo(profile)
        self._attainable(profile, slo)
        if not self.wanted.model_free:
            self.rejected = profile.rejected
            answer = self._by_model(profile.model, profile, slo) if profile.model and not self.rejected else None
            if not self.rejected:
                return self._answered(answer, "model")
            self.progress(f"model rejected: {self.rejected}; going by the data alone")
        return self._answered(self._by_data(profile, slo), "data")

    # ------------------------------------------------------------------------ profile

    def _profiled(self) -> Profile:
        rungs = ladder(self.batcher)
        rungs = (rungs[0], rungs[-1]) if self.wanted.model_free else rungs
        seconds = PROFILE_S
        for in_flight in rungs:
            known = [load for number, load in self.loads if number == in_flight]
            if not known:
                self.progress(f"profile: {in_flight} in flight, {seconds:.0f} s")
                known = [self.probe.closed(in_flight, seconds)]
                self.loads.append((in_flight, known[0]))
            if in_flight == 1:
                seconds = self._judge_single(known[0])
        self.profile = fit(self.loads, self.batcher)
        if not self.profile.capacity > 0:
            raise _End("failing", f"of {rungs[-1]} requests in flight none were answered well")
        return self.profile

    def _judge_single(self, alone: Observed) -> float:
        """Seconds of the loads to come, by how long one request takes."""
        taken_s = service_latencies(alone)
        if not taken_s.size or alone.not_ok_share > FAILING:
            raise _End("failing", f"{alone.not_ok_share:.1%} of single requests were not answered well")
        return seconds_of(self.batcher, float(taken_s.mean()))

    def _slo(self, profile: Profile) -> Slo:
        full_ms = self.batcher.max_batch * self.batcher.instances / profile.capacity * 1e3
        percentile = SLOW_PERCENTILE if profile.capacity < SLOW_PER_S else PERCENTILE
        limit_ms = self.wanted.limit_ms or float(f"{LIMIT_BATCHES * full_ms:.2g}")  # a limit that can be told
        return Slo(limit_ms=limit_ms, percentile=self.wanted.percentile or percentile)

    def _attainable(self, profile: Profile, slo: Slo) -> None:
        alone = next(load for in_flight, load in self.loads if in_flight == 1)
        median_ms = float(np.median(service_latencies(alone))) * 1e3
        if median_ms > slo.limit_ms:
            serves = f", {profile.table[0].ms:.4g} ms of that in the engine" if profile.table else ""
            raise _End(
                "unattainable",
                f"a single request alone takes {median_ms:.4g} ms{serves}: no rate is answered within "
                f"{slo.limit_ms:g} ms; ask for more than its service time",
            )

    # ------------------------------------------------------------------------ predict, verify

    def _by_model(self, model: Model, profile: Profile, slo: Slo) -> Answer | None:
        """The answer given the model; sets `rejected` where the model does not fit."""
        foreseen = self.foreseen = foresee(model, slo, self.wanted.seed, requests=self.wanted.simulated)
        if foreseen is None:
            least = LEAST_SHARE * model.capacity
            raise _End(
                "unattainable",
                f"even at {least:.3g} items/s more than {slo.over_allowed:.3g} of the requests would take over "
                f"{slo.limit_ms:g} ms: a full batch takes {model.full_batch_s * 1e3:.4g} ms",
            )
        answer, rate, pace = None, foreseen.items_per_s, 1.0
        for alpha, share in ((ALPHA, FIRST_SHARE), (ALPHA / 2, 1.0)):
            seconds = self._seconds(rate, profile.capacity, slo, share)
            if seconds < LEAST_S:
                return answer
            self._verify(model, profile, slo, rate=rate, pace=pace, seconds=seconds)
            near = [trial for trial in self.trials if abs(math.log(trial.rate / rate)) <= POOLED]
            got = given_model(near, model, foreseen, slo, alpha)
            if got is None:
                self.rejected = "no rate that it could have explains what was seen"
                return None
            answer, shift = got
            self.rejected = misfit(near, model, slo, shift.value)
            off = abs(math.log(answer.items_per_s / rate))
            if self.rejected or (off <= NEAR_ENOUGH and answer.half_width <= NEAR_ENOUGH):
                return answer
            rate, pace = answer.items_per_s, math.exp(-shift.value)
        return answer

    def _verify(self, model: Model, profile: Profile, slo: Slo, *, rate: float, pace: float, seconds: float) -> None:
        warm, count = warm_s(rate, profile.capacity, seconds), segments(rate, profile.capacity, seconds)
        offsets_ns = typical_schedule(
            model, slo, rate=rate, warm_s=warm, seconds=seconds, segments=count, pace=pace, seed=self._seed()
        )
        self._trial(offsets_ns, rate, warm, seconds, count, slo)

    # ------------------------------------------------------------------------ the data alone

    def _by_data(self, profile: Profile, slo: Slo) -> Answer | None:
        """Trials that point the way until they stay where they are, then one with all the time that is left."""
        capacity = profile.capacity
        rate = next_rate(self.trials, capacity, slo) if self.trials else first_guess(self.batcher, capacity, slo)
        for _ in range(TRIALS_MOST):
            left = self._left()
            settled = any(abs(math.log(rate / trial.rate)) <= POOLED_DATA for trial in self.trials)
            pointing = max(POINTING_S, POINTING_RELAXES * relax_s(rate, capacity))
            # What does not leave time for another is the last.
            seconds = left if settled or left < 2 * pointing + AROUND_S else pointing
            if seconds < LEAST_S:
                break
            offsets_ns = arrivals.poisson(rate, seconds, self._seed())
            self._trial(offsets_ns, rate, warm_s(rate, capacity, seconds), seconds, DATA_SEGMENTS, slo)
            rate = next_rate(self.trials, capacity, slo)
        near = [trial for trial in self.trials if abs(math.log(trial.rate / rate)) <= POOLED_DATA]
        return given_data(near, capacity, slo, ALPHA) if near else None

    # ------------------------------------------------------------------------ trials

    def _seconds(self, rate: float, capacity: float, slo: Slo, share: float) -> float:
        """As long as a trial at this rate should be, within its share of the time that is left."""
        enough = max(ENOUGH_S, ENOUGH_RELAXES * relax_s(rate, capacity), ENOUGH_OVER / slo.over_allowed / rate)
        return min(enough, share * self._left())

    def _left(self) -> float:
        """Seconds that a load may still send."""
        return self.wanted.seconds - (self.clock() - self.started_s) - AROUND_S

    def _seed(self) -> int:
        """A new pattern of arrivals for each trial, the same ones in each search."""
        return self.wanted.seed + 1 + len(self.trials)

    def _trial(self, offsets_ns: Numbers, rate: float, warm: float, seconds: float, count: int, slo: Slo) -> None:
        self.progress(f"trial {len(self.trials) + 1}: {rate:.4g} items/s for {seconds:.0f} s")
        seen = self.probe.open(offsets_ns, rate, seconds)
        trial = Trial(
            load=seen.load, rate=rate, warm_s=warm, seconds=seconds, offsets_s=offsets_ns / 1e9,
            latency_s=latencies(seen), segments=count,
        )  # fmt: skip
        self.trials.append(trial)
        failed = float(np.mean(seen.rows["status"] == Status.FAILED)) if seen.rows.size else 1.0
        if failed > max(FAILING, slo.over_allowed):
            raise _End("failing", f"at {rate:.4g} items/s {failed:.1%} of the requests failed")
        self.late = late_words(seen, slo)
        share = float(np.mean(trial.shares(slo)))
        self.progress(
            f"    {share:.2%} over {slo.limit_ms:g} ms (allowed {slo.over_allowed:.3g}); {self.late}".rstrip("; ")
        )

    # ------------------------------------------------------------------------ the answer

    def _answered(self, answer: Answer | None, given: Literal["model", "data"]) -> SloRate:
        if answer is not None and answer.half_width <= math.log1p(RESOLVED):
            return self.told("resolved", self.late, answer, given)
        reason = f"SLO rate not resolvable in {self.wanted.seconds:g} s"
        return self.told("not_resolvable", "; ".join(filter(None, (reason, self.late))), answer, given)

    def _asked(self) -> Slo | None:
        """The SLO in the user's words; None = the default, which the profile gives."""
        limit_ms, percentile = self.wanted.limit_ms, self.wanted.percentile
        return Slo(limit_ms=limit_ms, percentile=percentile or PERCENTILE) if limit_ms else None

    def told(
        self, verdict: Ending, reason: str, answer: Answer | None = None, given: Literal["model", "data"] = "data"
    ) -> SloRate:
        """The record, with whatever was found until now; NoValidNumber if the SLO itself is not known yet."""
        profile = self.profile
        model = profile.model if profile else None
        slo = self.slo or self._asked()
        if slo is None:
            raise NoValidNumber(f"no rate at an SLO: {reason}", word=verdict)
        return SloRate(
            slo=slo,
            items_per_s=answer.items_per_s if answer else None,
            ci95=answer.interval if answer else None,
            given=given,
            verdict=verdict,
            reason=reason,
            model_rejected=self.rejected,
            capacity_items_per_s=profile.capacity if profile else None,
            service=profile.table if profile else (),
            overheads=model.overheads if model else None,
            trials=tuple(recorded(trial, slo, model, self.foreseen) for trial in self.trials),
            seconds_spent=self.clock() - self.started_s,
        )


def first_guess(batcher: Batcher, capacity: float, slo: Slo) -> float:
    """Where data alone begins: C - ln(1/(1-p)) / (2 (L - 1.5 full-batch times)), heavy traffic of Poisson arrivals."""
    full_s = batcher.max_batch * batcher.instances / capacity
    room_s = max(0.1 * full_s, slo.limit_ms / 1e3 - 1.5 * full_s)
    guess = capacity + math.log(slo.over_allowed) / (2 * room_s)
    return min(max(guess, 0.2 * capacity), 0.95 * capacity)


def late_words(seen: Observed, slo: Slo) -> str:
    """Said where the sender was late: latency counts from the intended time, so its lateness is in there."""
    if not seen.rows.size:
        return "nothing was sent"
    lag_ms = float(np.percentile(seen.rows["sent_ns"] - seen.rows["intended_ns"], 99)) / 1e6
    words = [f"the sender was late: p99 {lag_ms:.3g} ms"] if lag_ms > LATE_SHARE * slo.limit_ms else []
    unsent = (seen.offsets_ns.size if seen.offsets_ns is not None else 0) - seen.rows.size
    return "; ".join([*words, *([f"{unsent} requests were never sent"] if unsent > 0 else [])])
