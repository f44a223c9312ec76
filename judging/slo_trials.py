"""What open-loop trials say of the rate at the SLO: given the queueing model, or by the data alone.

Reads trials; writes nothing. A trial is one load at a rate, its arrivals recorded, cut into segments after warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import stdtrit

from brim.records import Slo, SloTrial
from judging.slo_estimate import STEP, Shift, correlation, explain
from judging.slo_model import Model
from judging.slo_observed import Floats, Numbers, block_means, over_shares, parts
from judging.slo_predict import LEAST_SHARE, Foreseen, relax_s
from queueing.batcher import Batcher

#: Draws of the service times that a foreseen share is the mean of, and that show how far they alone move the answer.
REPEATS = 4
REDRAWN = 20
#: A model that is right follows every queue that builds up, from block to block.
BLOCKS = 60
CORRELATES = 0.8
#: Where no queue builds up there is nothing to follow: the model need only be near, in shares of the limit.
NEAR_LIMIT = 0.05
#: Requests that are not answered well come from a full queue, which it knows: twice as many come from elsewhere.
TWICE = 2.0
#: A model that is right about the server need not be stretched by more.
MOST_SHIFT = 0.25
#: A share beyond this tells that the rate is too high, not how much.
CERTAINLY_OVER = 0.5
#: If none is over the limit, so many must have been allowed to be for 95% confidence that the SLO is met.
RULE_OF_THREE = 3.0
#: Interval and share of a queue's memory that a segment is long; fewer than five segments give no interval.
SEGMENT_RELAXES, SEGMENTS_LEAST, SEGMENTS_MOST = 5, 5, 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """One open-loop load that was judged; latencies in seconds by the schedule, inf = never answered well."""

    load: int
    rate: float
    warm_s: float
    seconds: float
    offsets_s: Floats
    latency_s: Floats
    segments: int

    @property
    def firsts(self) -> Numbers:
        """Number of the first request of each segment, and one past the last."""
        return parts(self.offsets_s, self.warm_s, self.seconds, self.segments)

    @property
    def blocks(self) -> Numbers:
        return parts(self.offsets_s, self.warm_s, self.seconds, BLOCKS)

    def shares(self, slo: Slo) -> Floats:
        return over_shares(self.latency_s, self.firsts, slo)

    def replayed(self, model: Model, shift: float, seed: int) -> Floats:
        """Latencies of the model on the same arrivals, if the rate at the SLO were exp(shift) times the model's.

        A server that is slower by some factor does at one rate what the model does at a rate higher by it.
        """
        return model.latencies(self.offsets_s * math.exp(shift), seed)

    def expected(self, capacity: float, slo: Slo, rate_at_slo: float) -> Floats:
        """The segments' over-share by the shape of a queue's tail, ln P(wait > x) = -c (C - r) x, whatever c is."""
        room = max(1e-3 * capacity, capacity - rate_at_slo)
        exponent = max(0.0, (capacity - self.rate) / room)
        return np.full(self.segments, slo.over_allowed**exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A rate with the half-width of its interval on the scale of ln(rate); inf = cannot be told."""

    items_per_s: float
    half_width: float

    @property
    def interval(self) -> tuple[float, float] | None:
        if math.isinf(self.half_width):
            return None
        factor = math.exp(self.half_width)
        return (self.items_per_s / factor, self.items_per_s * factor)


def given_model(
    trials: Sequence[Trial], model: Model, foreseen: Foreseen, slo: Slo, alpha: float
) -> tuple[Answer, Shift] | None:
    """The rate that explains the trials: the model's own, moved; None if no move within range does.

    The arrivals are the same, so they cancel; what is left is how service times fell. The interval adds up how far
    segments differ from what the model makes of them, how far redrawn service times move the answer (few segments
    may agree by luck), and the error of the model's own rate: it is rather too wide than too narrow.
    """

    def drawn(shift: float, seed: int) -> Floats:
        return np.concatenate([over_shares(t.replayed(model, shift, seed), t.firsts, slo) for t in trials])

    @cache
    def expected(step: int) -> Floats:
        mean: Floats = np.mean([drawn(step * STEP, seed) for seed in range(REPEATS if model.noisy else 1)], axis=0)
        return mean

    shift = explain(expected, np.concatenate([trial.shares(slo) for trial in trials]))
    if shift is None:
        return None
    again = [explain(expected, drawn(shift.value, REPEATS + n)) for n in range(REDRAWN if model.noisy else 0)]
    moved = [one.value - shift.value for one in again if one is not None]
    scatter = math.sqrt(float(np.mean(np.square(moved)))) if moved else 0.0
    half_width = shift.half_width(alpha, scatter, foreseen.error)
    return Answer(items_per_s=foreseen.items_per_s * math.exp(shift.value), half_width=half_width), shift


def given_data(trials: Sequence[Trial], capacity: float, slo: Slo, alpha: float) -> Answer | None:
    """The rate that explains the trials by the shape of a queue's tail alone; None if none near the last one's does.

    Segments hold few bursts, and may all lack one: the interval adds up how far they differ and how far they should,
    by what a queue in heavy traffic remembers (`relax_s`).
    """
    around = trials[-1].rate

    @cache
    def expected(step: int) -> Floats:
        return np.concatenate([trial.expected(capacity, slo, around * math.exp(step * STEP)) for trial in trials])

    shift = explain(expected, np.concatenate([trial.shares(slo) for trial in trials]))
    if shift is None:
        return None
    rate = around * math.exp(shift.value)
    requests = sum(int(trial.firsts[-1] - trial.firsts[0]) for trial in trials)
    bursts = max(1.0, rate * relax_s(rate, capacity))  # requests that share their fate
    share_error = math.sqrt(bursts * (1 - slo.over_allowed) / slo.over_allowed / max(1, requests))
    kappa = -math.log(slo.over_allowed) * rate / max(1e-3 * capacity, capacity - rate)
    return Answer(items_per_s=rate, half_width=shift.half_width(alpha, share_error / kappa))


def bracketed(trials: Sequence[Trial], capacity: float, slo: Slo) -> tuple[float, float]:
    """Rates between which the answer lies, by t over the segments of each trial."""
    low, high = LEAST_SHARE * capacity, capacity
    for trial in sorted(trials, key=lambda trial: trial.rate):
        shares = trial.shares(slo)
        spread = float(shares.std(ddof=1)) / math.sqrt(shares.size) * float(stdtrit(shares.size - 1, 0.975))
        if shares.mean() + spread < slo.over_allowed:
            low = max(low, trial.rate)
        elif shares.mean() - spread > slo.over_allowed:
            high = min(high, trial.rate)
    return low, max(low, high)


def first_guess(batcher: Batcher, capacity: float, slo: Slo) -> float:
    """Where data alone begins: C - ln(1/(1-p)) / (2 (L - 1.5 full-batch times)), heavy traffic of Poisson arrivals."""
    full_s = batcher.max_batch * batcher.instances / capacity
    room_s = max(0.1 * full_s, slo.limit_ms / 1e3 - 1.5 * full_s)
    guess = capacity + math.log(slo.over_allowed) / (2 * room_s)
    return min(max(guess, 0.2 * capacity), 0.95 * capacity)


def next_rate(trials: Sequence[Trial], capacity: float, slo: Slo) -> float:
    """Where to look next without a model: where the last share points to, else mid-bracket in ln(rate)."""
    low, high = bracketed(trials, capacity, slo)
    last = trials[-1]
    share = float(last.shares(slo).mean())
    if 0 < share < CERTAINLY_OVER:
        pointed = capacity - (capacity - last.rate) * math.log(slo.over_allowed) / math.log(share)
        if low < pointed < high:
            return pointed
    side = (last.rate, high) if share <= slo.over_allowed else (low, last.rate)
    return math.sqrt(side[0] * side[1])


def least_requests(slo: Slo) -> int:
    """How many must all be within the limit to show that the SLO is met."""
    return math.ceil(round(RULE_OF_THREE / slo.over_allowed, 6))


def misfit(trials: Sequence[Trial], model: Model, slo: Slo, shift: float) -> str:
    """Why the model does not follow what was seen, block by block; "" if it does."""
    if abs(shift) > MOST_SHIFT:
        return f"its rate would have to move by {math.expm1(shift):+.0%} to explain what was seen"
    replays = [trial.replayed(model, shift, 0) for trial in trials]
    refused, foreseen = (float(np.isinf(np.concatenate(s)).mean()) for s in ([t.latency_s for t in trials], replays))
    if refused > max(TWICE * foreseen, foreseen + slo.over_allowed / 2):
        return f"{refused:.2%} of the requests were not answered well, where it foresees {foreseen:.2%}"
    seen = np.concatenate([block_means(t.latency_s, t.blocks, slo) for t in trials])
    followed = np.concatenate([block_means(s, t.blocks, slo) for s, t in zip(replays, trials, strict=True)])
    follows = correlation(seen, followed)
    apart = float(np.sqrt(np.mean((seen - followed) ** 2)))
    if follows >= CORRELATES or apart <= NEAR_LIMIT:
        return ""
    return f"on the same arrivals its latencies correlate with those seen by {follows:.2f} only"


def recorded(trial: Trial, slo: Slo, model: Model | None, foreseen: Foreseen | None) -> SloTrial:
    """The trial as slo.json tells it."""
    foreseen_share = long_run = None
    if model and foreseen:
        foreseen_share = float(np.mean(over_shares(trial.replayed(model, 0.0, 0), trial.firsts, slo)))
        long_run = min(1.0, slo.over_allowed * (trial.rate / foreseen.items_per_s) ** foreseen.kappa)
    return SloTrial(
        load=trial.load,
        items_per_s=trial.rate,
        seconds=trial.seconds - trial.warm_s,
        requests=int(trial.firsts[-1] - trial.firsts[0]),
        over_share=float(np.mean(trial.shares(slo))),
        foreseen_share=foreseen_share,
        long_run_share=long_run,
    )


def warm_s(rate: float, capacity: float, seconds: float) -> float:
    """Five times as long as a queue remembers, but no more than a fifth of the trial."""
    return min(5 * relax_s(rate, capacity), 0.2 * seconds)


def segments(rate: float, capacity: float, seconds: float) -> int:
    """So many that a queue has forgotten from one to the next, within bounds."""
    wanted = seconds / (SEGMENT_RELAXES * relax_s(rate, capacity))
    return int(min(SEGMENTS_MOST, max(SEGMENTS_LEAST, wanted)))
