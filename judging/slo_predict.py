"""What the queueing model foresees: the rate at the SLO in the long run, and arrivals that show it in a short one.

Simulates with the model; reads and writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from brim.records import Slo
from judging.slo_model import Model
from judging.slo_observed import Floats
from queueing import arrivals

Flags: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[np.int64]

#: Simulated behind a long-run rate, as often as RUNS: it then carries some 0.2% of Monte Carlo error, which the
#: interval includes. Ten times more arrivals would take longer than they gain.
REQUESTS = 1_000_000
RUNS = 4
#: Rates are looked for between these shares of the capacity: at it and above there is no steady state, and what a
#: simulation shows is its own length.
LEAST_SHARE, MOST_SHARE = 0.01, 0.995
COARSE_STEPS = 14  # halvings of that range: 0.03%
FINE_STEP = 0.015  # to either side of the coarse answer, or half of what is left up to the capacity
STRETCHES = 5  # of a run, for the error of the mean
LEAST_KAPPA = 1e-3
#: Candidates for each segment of a schedule.
CANDIDATES = 48
#: They are simulated behind so many relaxation times of what was chosen before: nothing earlier is in the queue.
MEMORY_RELAXES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """The model's own answer."""

    items_per_s: float
    kappa: float  # d ln(over share) / d ln(rate) there
    error: float  # standard error of ln(items_per_s), of the simulation


def met_up_to_capacity(model: Model, slo: Slo, seed: int, *, requests: int = REQUESTS) -> bool:
    """Whether the limit is so wide that the queue alone, which has no end beyond the capacity, sets the rate."""
    return bool(_over(model, slo, MOST_SHARE * model.capacity, requests, seed).mean() <= slo.over_allowed)


def foresee(model: Model, slo: Slo, seed: int, *, requests: int = REQUESTS) -> Foreseen | None:
    """The rate of Poisson arrivals at which the model just meets the SLO; None if it does not at any.

    Halving on a tenth of the requests finds the neighbourhood, then ln(over share) is taken to be a straight line
    between two long simulations of the same arrivals.
    """
    low, high = (math.log(share * model.capacity) for share in (LEAST_SHARE, MOST_SHARE))
    if _over(model, slo, math.exp(low), requests // 10, seed).mean() > slo.over_allowed:
        return None
    for _ in range(COARSE_STEPS):
        middle = (low + high) / 2
        if _over(model, slo, math.exp(middle), requests // 10, seed).mean() > slo.over_allowed:
            high = middle
        else:
            low = middle
    floor = 1.0 / (RUNS * requests)
    fine = min(FINE_STEP, (math.log(model.capacity) - low) / 2)
    below, above = (_batch_means(model, slo, math.exp(low + step), requests, seed) for step in (-fine, fine))
    ln_below, ln_above = (math.log(max(floor, float(over.mean()))) for over in (below, above))
    kappa = max(LEAST_KAPPA, (ln_above - ln_below) / (2 * fine))
    found = low - fine + (math.log(slo.over_allowed) - ln_below) / kappa
    found = min(found, math.log(MOST_SHARE * model.capacity))
    relative = float(above.std(ddof=1)) / math.sqrt(above.size) / max(floor, float(above.mean()))
    return Foreseen(items_per_s=math.exp(found), kappa=kappa, error=relative / kappa)


def _batch_means(model: Model, slo: Slo, rate: float, requests: int, seed: int) -> Floats:
    """Over-shares of long stretches of simulated arrivals, in several runs so that memory stays flat."""
    runs = [_over(model, slo, rate, requests, seed + run) for run in range(RUNS)]
    means = [over[: over.size // STRETCHES * STRETCHES].reshape(STRETCHES, -1).mean(axis=1) for over in runs]
    together: Floats = np.concatenate(means)
    return together


def _over(model: Model, slo: Slo, rate: float, requests: int, seed: int) -> Flags:
    at_s = arrivals.poisson(rate, requests / rate, seed) / 1e9
    over: Flags = model.latencies(at_s, seed) > slo.limit_ms / 1e3
    return over


def relax_s(rate: float, capacity: float) -> float:
    """How long a queue remembers: 2 r / (C - r)^2, heavy traffic of Poisson arrivals at near-deterministic service."""
    return 2 * rate / max(capacity - rate, 0.01 * capacity) ** 2


def typical_schedule(
    model: Model, slo: Slo, *, rate: float, warm_s: float, seconds: float, segments: int, pace: float, seed: int
) -> Numbers:
    """Offsets (int64 ns) of Poisson arrivals whose segments each show about as much of the limit as the long run does.

    Of several seeded candidates for each segment the one is taken on which the model, `pace` times as loaded, comes
    nearest to the share that the SLO allows. That is stratified sampling by a control variate: a minute of arrivals
    holds few bursts, and an unlucky draw has none. It favours no outcome, for what the server makes of them is open.
    """
    lengths = [warm_s, *[(seconds - warm_s) / segments] * segments]
    memory_s = MEMORY_RELAXES * pace * relax_s(rate * pace, model.capacity)
    begun = 0.0
    chosen = np.empty(0)
    for number, length in enumerate(lengths):
        seeds = np.random.SeedSequence((seed, number)).generate_state(CANDIDATES if number else 1)
        drawn = [begun + _poisson(rate, length, int(s)) for s in seeds]
        before = chosen[np.searchsorted(chosen, begun - memory_s) :]
        scores = [_untypical(model, slo, np.concatenate((before, more)) / pace, before.size) for more in drawn]
        chosen = np.concatenate((chosen, drawn[min(range(len(drawn)), key=scores.__getitem__)]))
        begun += length
    offsets_ns: Numbers = np.rint(chosen * 1e9).astype(np.int64)
    return offsets_ns


def _poisson(rate: float, seconds: float, seed: int) -> Floats:
    offsets: Floats = arrivals.poisson(rate, seconds, seed) / 1e9
    return offsets


def _untypical(model: Model, slo: Slo, arrivals_s: Floats, first: int) -> tuple[float, float]:
    """How far the requests from `first` on are from the share that is allowed, then from the limit in their tail."""
    latency_s = model.latencies(arrivals_s, seed=0)[first:]
    if not latency_s.size:
        return (1.0, 1.0)
    limit_s = slo.limit_ms / 1e3
    tail_s = float(np.quantile(latency_s, slo.percentile / 100, method="inverted_cdf"))
    return (abs(float(np.mean(latency_s > limit_s)) - slo.over_allowed), abs(tail_s - limit_s))
