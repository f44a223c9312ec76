"""The search for the largest rate that meets an SLO: profile, predict, verify; data alone where the model does not fit.

Loads come from a Loader, time from a clock; writes nothing. What is judged, and how, is judging.slo_*'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from brim.errors import Interrupted, Lost, NoValidNumber
from brim.records import Slo, SloRate, Status
from experiments.measure.slo_profile import (
    End,
    Ending,
    Loader,
    Sought,
    alone,
    held_back,
    profiled,
    require_attainable,
    slo_of,
)
from judging.slo_model import Model, Profile
from judging.slo_observed import Numbers, Observed, ended_otherwise, late_words, latencies
from judging.slo_predict import (
    LEAST_SHARE,
    MOST_SHARE,
    Foreseen,
    foresee,
    met_up_to_capacity,
    relax_s,
    typical_schedule,
)
from judging.slo_trials import (
    Answer,
    Trial,
    bracketed,
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
#: What a load takes besides its own seconds: its processes start, the last answers come.
AROUND_S = 2.5
#: Of the time that is left, the first trial's share: the second one, where the first points to, has the rest.
FIRST_SHARE = 0.55
#: If none is over the limit, so many must have been allowed to be for 95% confidence that the SLO is met.
RULE_OF_THREE = 3.0
#: A trial is long enough with so many requests over the limit, as many times a queue's memory, and so many seconds.
ENOUGH_OVER, ENOUGH_RELAXES, ENOUGH_S = 200, 100, 10.0
#: A trial of the data alone that only points the way.
POINTING_RELAXES, POINTING_S = 20, 4.0
#: Shorter than this, nothing is learned.
LEAST_S = 3.0
DATA_SEGMENTS, TRIALS_MOST = 10, 8
#: Here what a trial says of a rate further away is less of an error than its own.
POOLED_DATA = 0.10


def search(
    loader: Loader,
    batcher: Batcher,
    sought: Sought,
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
        loader=loader,
        batcher=batcher,
        sought=sought,
        progress=progress,
        clock=clock,
        loads=list(ready),
        started_s=clock(),
    )
    try:
        return at.run()
    except End as end:
        at.slo = at.slo or end.slo
        return at.told(end.verdict, end.reason, end.answer)
    except Lost as error:
        return at.told("server_lost", str(error))
    except Interrupted as error:
        stopped(error)
        return at.told("aborted", str(error))


@dataclass(slots=True, kw_only=True)
class _Search:
    """What one search has found so far."""

    loader: Loader
    batcher: Batcher
    sought: Sought
    progress: Callable[[str], None]
    clock: Callable[[], float]
    loads: list[tuple[int, Observed]]
    started_s: float
    profile: Profile | None = None
    slo: Slo | None = None
    foreseen: Foreseen | None = None
    trials: list[Trial] = field(default_factory=list)
    rejected: str = ""
    statuses: list[npt.NDArray[np.uint8]] = field(default_factory=list)  # of the trials' requests
    late: str = ""  # the client with the newest trial, which is then left out

    def run(self) -> SloRate:
        """Profile, then the model's way while it fits, else the data's."""
        profile = self.profile = profiled(
            self.loader, self.batcher, self.sought, self.loads, left_s=self._left, progress=self.progress
        )
        slo = self.slo = slo_of(profile, self.batcher, self.sought)
        require_attainable(alone(self.loads), slo, profile.table)
        if not self.sought.model_free:
            self.rejected = profile.rejected
            answer = self._by_model(profile.model, profile, slo) if profile.model and not self.rejected else None
            if not self.rejected:
                return self._answered(answer, "model")
            self.progress(f"model rejected: {self.rejected}; going by the data alone")
        if held_back(profile, self.sought):
            raise self._at_most(profile, slo)
        return self._answered(self._by_data(profile, slo), "data")

    # ------------------------------------------------------------------------ the most that may be sent

    def _at_most(self, profile: Profile, slo: Slo) -> End:
        """The end where the user's limit held the profile back, so no capacity is known: by one trial at that limit."""
        most, seconds = self.sought.most_tried, self._left()
        self.rejected = ""  # a model of a server that was not loaded is not wrong of it
        if seconds >= LEAST_S and self._poisson(most, profile.capacity, slo, seconds):
            low, _ = bracketed(self.trials[-1:], most, slo)
            if low >= most and self.trials[-1].latency_s.size * slo.over_allowed >= RULE_OF_THREE:
                return self._beyond_most()
        return self._unresolved(f"the server's capacity is not known: {self._most} is too little to show it")

    def _beyond_most(self) -> End:
        most = self.sought.most_tried
        return self._unresolved(
            f"{most:.4g}/s meet it, so the rate is at least that; random arrivals at more would exceed {self._most}: "
            "raise max_rate_per_s to look further",
            Answer(items_per_s=most, half_width=math.inf),
        )

    @property
    def _most(self) -> str:
        return f"the {self.sought.most_per_s:g}/s that max_rate_per_s allows this host"

    # ------------------------------------------------------------------------ predict, verify

    def _by_model(self, model: Model, profile: Profile, slo: Slo) -> Answer | None:
        """The answer given the model; sets `rejected` where the model does not fit."""
        if met_up_to_capacity(model, slo, self.sought.seed, requests=self.sought.simulated):
            raise self._capacity_alone(profile, slo)
        foreseen = self.foreseen = foresee(model, slo, self.sought.seed, requests=self.sought.simulated)
        if foreseen is None:
            least = LEAST_SHARE * model.capacity
            raise End(
                "unattainable",
                f"even at {least:.3g} items/s more than {slo.over_allowed:.3g} of the requests would take over "
                f"{slo.limit_ms:g} ms: a full batch takes {model.full_batch_s * 1e3:.4g} ms",
            )
        answer, rate, pace = None, foreseen.items_per_s, 1.0
        for alpha, share in ((ALPHA, FIRST_SHARE), (ALPHA / 2, 1.0)):
            rate = min(rate, self.sought.most_tried)
            seconds = self._seconds(rate, profile.capacity, slo, share)
            if seconds < LEAST_S or not self._verify(model, profile, slo, rate=rate, pace=pace, seconds=seconds):
                return answer
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

    def _verify(self, model: Model, profile: Profile, slo: Slo, *, rate: float, pace: float, seconds: float) -> bool:
        """A trial of arrivals that are typical of the model; False if the client was late with it."""

        def send(seconds: float) -> bool:
            warm, count = warm_s(rate, profile.capacity, seconds), segments(rate, profile.capacity, seconds)
            offsets_ns = typical_schedule(
                model, slo, rate=rate, warm_s=warm, seconds=seconds, segments=count, pace=pace, seed=self._seed()
            )
            return self._trial(offsets_ns, rate, warm, seconds, count, slo)

        return self._on_time(send, seconds)

    # ------------------------------------------------------------------------ the data alone

    def _by_data(self, profile: Profile, slo: Slo) -> Answer | None:
        """Trials that point the way until they stay where they are, then one with all the time that is left."""
        capacity = profile.capacity
        rate = next_rate(self.trials, capacity, slo) if self.trials else first_guess(self.batcher, capacity, slo)
        rate = min(rate, self.sought.most_tried)
        for _ in range(TRIALS_MOST):
            left = self._left()
            settled = any(abs(math.log(rate / trial.rate)) <= POOLED_DATA for trial in self.trials)
            pointing = max(POINTING_S, POINTING_RELAXES * relax_s(rate, capacity))
            # What does not leave time for another is the last.
            seconds = left if settled or left < 2 * pointing + AROUND_S else pointing
            if seconds < LEAST_S or not self._poisson(rate, capacity, slo, seconds):
                break
            rate = min(next_rate(self.trials, capacity, slo), self.sought.most_tried)
        lowest = min(self.trials, key=lambda trial: trial.rate, default=None)
        if lowest is not None and bracketed(self.trials, capacity, slo)[1] <= lowest.rate:
            share = float(lowest.shares(slo).mean())
            raise self._unresolved(f"{lowest.rate:.4g} items/s, the lowest rate tried, have {share:.1%} over the limit")
        near = [trial for trial in self.trials if abs(math.log(trial.rate / rate)) <= POOLED_DATA]
        return given_data(near, capacity, slo, ALPHA) if near else None

    def _poisson(self, rate: float, capacity: float, slo: Slo, seconds: float) -> bool:
        """A trial of random arrivals; False if the client was late with it."""

        def send(seconds: float) -> bool:
            offsets_ns = arrivals.poisson(rate, seconds, self._seed())
            return self._trial(offsets_ns, rate, warm_s(rate, capacity, seconds), seconds, DATA_SEGMENTS, slo)

        return self._on_time(send, seconds)

    def _capacity_alone(self, profile: Profile, slo: Slo) -> End:
        return self._unresolved(
            f"a limit of {slo.limit_ms:g} ms is so wide that it is met up to {MOST_SHARE:.3g} of the capacity of "
            f"{profile.capacity:.4g} items/s, and the capacity alone sets the rate; ask for a smaller --slo-ms"
        )

    # ------------------------------------------------------------------------ trials

    def _seconds(self, rate: float, capacity: float, slo: Slo, share: float) -> float:
        """As long as a trial at this rate should be, within its share of the time that is left."""
        enough = max(ENOUGH_S, ENOUGH_RELAXES * relax_s(rate, capacity), ENOUGH_OVER / slo.over_allowed / rate)
        return min(enough, share * self._left())

    def _left(self) -> float:
        """Seconds that a load may still send."""
        return self.sought.seconds - (self.clock() - self.started_s) - AROUND_S

    def _seed(self) -> int:
        """A new pattern of arrivals for each trial, the same ones in each search."""
        return self.sought.seed + 1 + len(self.trials)

    def _on_time(self, send: Callable[[float], bool], seconds: float) -> bool:
        """Whether the trial was sent as it should, or once more, for which some seconds are added if none are left."""
        return send(seconds) or send(min(seconds, max(self._left(), ENOUGH_S)))

    def _trial(self, offsets_ns: Numbers, rate: float, warm: float, seconds: float, count: int, slo: Slo) -> bool:
        """One trial; False if the client was late with it: then it says nothing of the server, and is left out."""
        self.progress(f"trial {len(self.trials) + 1}: {rate:.4g} items/s for {seconds:.0f} s")
        seen = self.loader.open(offsets_ns, rate, seconds)
        failed = float(np.mean(seen.rows["status"] == Status.FAILED)) if seen.rows.size else 0.0
        failing = failed > max(FAILING, slo.over_allowed)
        self.late = "" if failing else late_words(seen, slo)
        if self.late:
            self.progress(f"    left out: {self.late}")
            return False
        trial = Trial(
            load=seen.load, rate=rate, warm_s=warm, seconds=seconds, offsets_s=offsets_ns / 1e9,
            latency_s=latencies(seen), segments=count,
        )  # fmt: skip
        self.trials.append(trial)
        self.statuses.append(seen.rows["status"])
        if failing:
            raise End("failing", f"at {rate:.4g} items/s {failed:.1%} of the requests failed")
        share = float(np.mean(trial.shares(slo)))
        self.progress(f"    {share:.2%} over {slo.limit_ms:g} ms (allowed {slo.over_allowed:.3g})")
        return True

    # ------------------------------------------------------------------------ the answer

    def _answered(self, answer: Answer | None, given: Literal["model", "data"]) -> SloRate:
        if answer is not None and answer.items_per_s >= self.sought.most_tried:
            raise self._beyond_most()
        if answer is not None and self.profile is not None and answer.items_per_s >= self.profile.capacity:
            raise self._unresolved("the trials point to a rate above the capacity, which nobody can serve for long")
        if answer is not None and answer.half_width <= math.log1p(RESOLVED) and not self.late:
            return self.told("resolved", "", answer, given)
        return self.told("not_resolvable", self._why_unresolved(""), answer, given)

    def _unresolved(self, why: str, answer: Answer | None = None) -> End:
        return End("not_resolvable", self._why_unresolved(why), answer=answer)

    def _why_unresolved(self, why: str) -> str:
        refused = ""
        if self.slo and self.statuses:
            refused = ended_otherwise(np.concatenate(self.statuses), above=self.slo.over_allowed)
        told = (self.sought.unresolved, why, f"in the trials {refused}" if refused else "", self.late)
        return "; ".join(filter(None, told))

    def told(
        self, verdict: Ending, reason: str, answer: Answer | None = None, given: Literal["model", "data"] = "data"
    ) -> SloRate:
        """The record, with whatever was found until now; NoValidNumber if the SLO itself is not known yet."""
        profile = self.profile
        model = profile.model if profile else None
        slo = self.slo or self.sought.slo
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
            capacity_items_per_s=profile.capacity if profile and not held_back(profile, self.sought) else None,
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
