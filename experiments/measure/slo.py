"""The search for the largest rate that meets an SLO: profile, predict, verify; data alone where the model does not fit.

Loads come from a Loader, time from a clock; writes nothing. What is judged, and how, is judging.slo_*'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from brim.errors import Interrupted, Lost, NoValidNumber
from brim.records import Slo, SloRate
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
from experiments.measure.slo_sending import AROUND_S, Trials
from judging.slo_model import Model, Profile
from judging.slo_observed import Observed
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
    bracketed,
    first_guess,
    given_data,
    given_model,
    least_requests,
    misfit,
    next_rate,
    recorded,
    segments,
    warm_s,
)  # fmt: skip
from queueing import arrivals
from queueing.batcher import Batcher

ALPHA = 0.05
#: An answer this near to where it was verified, and this narrow, is not verified again.
NEAR_ENOUGH = 0.02
#: Trials further from the answer are not pooled with it: what they say of it is an extrapolation.
POOLED = 0.05
#: A wider interval is no answer.
RESOLVED = 0.10
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
    trials = Trials(loader=loader, sought=sought, progress=progress, clock=clock, started_s=clock())
    at = _Search(batcher=batcher, sought=sought, trials=trials, loads=list(ready))
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

    batcher: Batcher
    sought: Sought
    trials: Trials
    loads: list[tuple[int, Observed]]
    profile: Profile | None = None
    slo: Slo | None = None
    foreseen: Foreseen | None = None
    rejected: str = ""

    def run(self) -> SloRate:
        """Profile, then the model's way while it fits, else the data's."""
        trials = self.trials
        profile = self.profile = profiled(
            trials.loader, self.batcher, self.sought, self.loads, left_s=trials.left_s, progress=trials.progress
        )
        slo = self.slo = slo_of(profile, self.batcher, self.sought)
        require_attainable(alone(self.loads), slo, profile.table)
        if not self.sought.model_free:
            self.rejected = profile.rejected
            answer = self._by_model(profile.model, profile, slo) if profile.model and not self.rejected else None
            if not self.rejected:
                return self._answered(answer, "model")
            trials.progress(f"model rejected: {self.rejected}; going by the data alone")
        if held_back(profile, self.sought):
            raise self._at_most(profile, slo)
        return self._answered(self._by_data(profile, slo), "data")

    # ------------------------------------------------------------------------ the most that may be sent

    def _at_most(self, profile: Profile, slo: Slo) -> End:
        """The end where the user's limit held the profile back, so no capacity is known: by one trial just below."""
        most, seconds = self.sought.most_tried, self.trials.left_s()
        self.rejected = ""  # a model of a server that was not loaded is not wrong of it
        if seconds >= LEAST_S and self._poisson(most, profile.capacity, slo, seconds):
            low, _ = bracketed(self.trials.sent[-1:], most, slo)
            if low >= most and self.trials.sent[-1].latency_s.size >= least_requests(slo):
                return self._beyond_most()
        return self._end(f"the server's capacity is not known: {self._most} is too little to show it")

    def _beyond_most(self) -> End:
        most = self.sought.most_tried
        return self._end(
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
            raise self._end(
                f"a limit of {slo.limit_ms:g} ms is so wide that it is met up to {MOST_SHARE:.3g} of the capacity of "
                f"{profile.capacity:.4g} items/s, and the capacity alone sets the rate; ask for a smaller --slo-ms"
            )
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
            near = [trial for trial in self.trials.sent if abs(math.log(trial.rate / rate)) <= POOLED]
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
                model, slo, rate=rate, warm_s=warm, seconds=seconds, segments=count, pace=pace, seed=self.trials.seed
            )
            return self.trials.send(offsets_ns, slo, rate=rate, warm=warm, seconds=seconds, segments=count)

        return self._on_time(send, seconds)

    # ------------------------------------------------------------------------ the data alone

    def _by_data(self, profile: Profile, slo: Slo) -> Answer | None:
        """Trials that point the way until they stay where they are, then one with all the time that is left."""
        capacity, trials = profile.capacity, self.trials.sent
        rate = next_rate(trials, capacity, slo) if trials else first_guess(self.batcher, capacity, slo)
        rate = min(rate, self.sought.most_tried)
        for _ in range(TRIALS_MOST):
            left = self.trials.left_s()
            settled = any(abs(math.log(rate / trial.rate)) <= POOLED_DATA for trial in trials)
            pointing = max(POINTING_S, POINTING_RELAXES * relax_s(rate, capacity))
            # What does not leave time for another is the last.
            seconds = left if settled or left < 2 * pointing + AROUND_S else pointing
            if seconds < LEAST_S or not self._poisson(rate, capacity, slo, seconds):
                break
            rate = min(next_rate(trials, capacity, slo), self.sought.most_tried)
        lowest = min(trials, key=lambda trial: trial.rate, default=None)
        if lowest is not None and bracketed(trials, capacity, slo)[1] <= lowest.rate:
            share = float(lowest.shares(slo).mean())
            raise self._end(f"{lowest.rate:.4g} items/s, the lowest rate tried, have {share:.1%} over the limit")
        near = [trial for trial in trials if abs(math.log(trial.rate / rate)) <= POOLED_DATA]
        return given_data(near, capacity, slo, ALPHA) if near else None

    def _poisson(self, rate: float, capacity: float, slo: Slo, seconds: float) -> bool:
        """A trial of random arrivals; False if the client was late with it."""

        def send(seconds: float) -> bool:
            offsets_ns, warm = arrivals.poisson(rate, seconds, self.trials.seed), warm_s(rate, capacity, seconds)
            return self.trials.send(offsets_ns, slo, rate=rate, warm=warm, seconds=seconds, segments=DATA_SEGMENTS)

        return self._on_time(send, seconds)

    # ------------------------------------------------------------------------ how long

    def _seconds(self, rate: float, capacity: float, slo: Slo, share: float) -> float:
        """As long as a trial at this rate should be, within its share of the time that is left."""
        enough = max(ENOUGH_S, ENOUGH_RELAXES * relax_s(rate, capacity), ENOUGH_OVER / slo.over_allowed / rate)
        return min(enough, share * self.trials.left_s())

    def _on_time(self, send: Callable[[float], bool], seconds: float) -> bool:
        """Whether the trial was sent as it should, or once more, for which some seconds are added if none are left."""
        return send(seconds) or send(min(seconds, max(self.trials.left_s(), ENOUGH_S)))

    # ------------------------------------------------------------------------ the answer

    def _answered(self, answer: Answer | None, given: Literal["model", "data"]) -> SloRate:
        in_time = "" if self.trials.late else self.sought.not_in_time
        if answer is not None and answer.items_per_s >= self.sought.most_tried:
            raise self._beyond_most()
        if answer is not None and self.profile is not None and answer.items_per_s >= self.profile.capacity:
            beyond = "the trials point to a rate above the capacity, which nobody can serve for long"
            raise self._end(f"{self.sought.not_in_time}: {beyond}")
        if answer is not None and answer.half_width <= math.log1p(RESOLVED) and not self.trials.late:
            return self.told("resolved", "", answer, given)
        return self.told("not_resolvable", self._with_trials(in_time), answer, given)

    def _end(self, why: str, answer: Answer | None = None) -> End:
        return End("not_resolvable", self._with_trials(why), answer=answer)

    def _with_trials(self, why: str) -> str:
        refused = self.trials.refused(self.slo) if self.slo else ""
        return "; ".join(filter(None, (why, refused, self.trials.late)))

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
            trials=tuple(recorded(trial, slo, model, self.foreseen) for trial in self.trials.sent),
            seconds_spent=self.trials.spent_s,
        )
