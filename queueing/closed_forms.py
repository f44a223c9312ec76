"""What queueing theory says exactly: the oracles that the simulator is held against.

Rates a second, times in seconds. `service_s` is the mean service time, `load` the rate times it, in servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

DIGITS = 80  # the terms of Crommelin's series alternate, and cancel to a tenth of their digits
TAIL_DEVIATIONS, TAIL_COUNTS = 12.0, 40.0  # how far a Poisson law reaches: beyond are less than 1e-25
LEAST_CHANGE, MOST_STEPS = 1e-13, 1_000_000  # of a chain that is iterated to its fixed point


def mg1_wait_s(rate: float, service_s: float, cv: float) -> float:
    """Mean wait with one server (Pollaczek and Khinchine); cv of the service time: 1 is M/M/1, 0 is M/D/1."""
    load = rate * service_s
    return load * service_s * (1 + cv**2) / (2 * (1 - load))


def mm1_sojourn_quantile_s(rate: float, service_s: float, share: float) -> float:
    """M/M/1: the time in the system that this share of the requests stays under."""
    return -math.log(1 - share) / (1 / service_s - rate)


def erlang_b(servers: int, load: float) -> float:
    """Share of the requests lost where nobody may wait, by the recursion on the number of servers."""
    lost = 1.0
    for n in range(1, servers + 1):
        lost = load * lost / (n + load * lost)
    return lost


def erlang_c(servers: int, load: float) -> float:
    """Share of the requests that wait where all may: M/M/c."""
    lost = erlang_b(servers, load)
    return servers * lost / (servers - load * (1 - lost))


def mmc_wait_s(rate: float, service_s: float, servers: int) -> float:
    """Mean wait, M/M/c."""
    return erlang_c(servers, rate * service_s) / (servers / service_s - rate)


def mmc_wait_quantile_s(rate: float, service_s: float, servers: int, share: float) -> float:
    """M/M/c: the wait that this share of the requests stays under; 0 where so many do not wait at all."""
    waiting = erlang_c(servers, rate * service_s)
    return max(0.0, math.log(waiting / (1 - share))) / (servers / service_s - rate)


def mmck_rejected(servers: int, load: float, queue: int) -> float:
    """Share of the requests rejected where `queue` may wait; 0 gives Erlang B."""
    lost, utilisation = erlang_b(servers, load), load / servers
    return lost * utilisation**queue / (1 + lost * sum(utilisation**n for n in range(1, queue + 1)))


def md1_wait_within(rate: float, service_s: float, wait_s: float) -> float:
    """M/D/1: share of the requests that wait no longer, by Crommelin's series in decimals."""
    with localcontext(prec=DIGITS):
        arrivals, service, wait = Decimal(rate), Decimal(service_s), Decimal(wait_s)
        total, factorial = Decimal(0), Decimal(1)
        for n in range(int(wait / service) + 1):
            factorial *= max(n, 1)
            mean = arrivals * (n * service - wait)
            total += (mean**n if n else Decimal(1)) / factorial * (-mean).exp()
        return float((1 - arrivals * service) * total)


def md1_wait_quantile_s(rate: float, service_s: float, share: float) -> float:
    """M/D/1: the wait that this share of the requests stays under, by bisection."""
    low, high = 0.0, service_s
    while md1_wait_within(rate, service_s, high) < share:
        low, high = high, 2 * high
    while high - low > 1e-9 * service_s:
        middle = (low + high) / 2
        low, high = (middle, high) if md1_wait_within(rate, service_s, middle) < share else (low, middle)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Of all requests: the share that waits, and the mean wait."""

    share: float
    mean_s: float


def mdc_wait(rate: float, service_s: float, servers: int) -> Wait:
    """M/D/c: whoever is in service now has left one service time later, and whoever came in between is there.

    So the number in the system follows q' = max(q - c, 0) + Poisson(load); iterated to its fixed point.
    """
    load = rate * service_s
    came = _poisson(load, int(load + TAIL_DEVIATIONS * math.sqrt(load) + TAIL_COUNTS))
    size = int(TAIL_COUNTS * servers / (servers - load)) + came.size + servers
    law: NDArray[np.float64] = np.zeros(size)
    law[0] = 1.0
    for _ in range(MOST_STEPS):
        kept = np.concatenate([[law[: servers + 1].sum()], law[servers + 1 :]])
        after = np.convolve(kept, came)[:size]
        change = np.abs(after - law).sum()
        law[:] = after / after.sum()
        if change < LEAST_CHANGE:
            break
    number = np.arange(size)
    queued = float(law @ np.maximum(number - servers, 0))
    return Wait(share=float(law[servers:].sum()), mean_s=queued / rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchQueue:
    """One server that takes all that waits as one batch of alpha·b + tau0 seconds (Inoue 2021, arXiv 1912.06322)."""

    rate: float
    alpha_s: float
    tau0_s: float

    @property
    def load(self) -> float:
        """Of the rate that ever larger batches come near to; stable below 1."""
        return self.rate * self.alpha_s

    def latency_bound_s(self) -> float:
        """No mean latency is above it (his theorem 2)."""
        rate, alpha, tau0, load = self.rate, self.alpha_s, self.tau0_s, self.load
        light = (alpha + tau0) / (2 * (1 - load)) * (1 + 2 * rate * tau0 + (1 - rate * tau0) / (1 + load))
        heavy = 1.5 * tau0 / (1 - load) + alpha / 2 * (load + 2) / (1 - load**2)
        return min(light, heavy)

    def exact(self) -> BatchQueueMeans:
        """From the stationary law of the batch size: the next batch is all that came meanwhile, at least one."""
        most = self._most()
        sizes = np.arange(1, most + 1)
        came = np.stack([_poisson(self.rate * (self.alpha_s * b + self.tau0_s), most) for b in sizes])
        came[:, 1] += came[:, 0]  # nobody came: the next request is a batch by itself
        law = _stationary(came[:, 1:] / came[:, 1:].sum(axis=1, keepdims=True))
        mean, square = float(law @ sizes), float(law @ sizes**2)
        waiting = (square - mean) / (2 * self.rate * mean)
        serving = self.alpha_s * square / mean + self.tau0_s
        idle = 1 - self.load - self.rate * self.tau0_s / mean
        return BatchQueueMeans(batch=mean, latency_s=waiting + serving, idle_share=idle)

    def _most(self) -> int:
        """A batch size that is hardly ever passed: autoregressive with factor `load` round its mean."""
        mean = (self.rate * self.tau0_s + 1) / (1 - self.load)
        return int(mean + TAIL_DEVIATIONS * math.sqrt(mean / (1 - self.load**2)) + TAIL_COUNTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchQueueMeans:
    """Mean batch over batches, mean latency over requests, and the share of time without work."""

    batch: float
    latency_s: float
    idle_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What so many clients see who ask again as soon as they are answered."""

    items_per_s: float
    latency_s: float


def closed_loop_rung(
    concurrency: int, max_batch: int, held_s: Callable[[float], float], additive_s: float = 0.0
) -> Rung:
    """One instance, no delay, clients without think time: two batches alternate.

    `held_s(b)` is how long a batch holds the instance, linear in b; the rest of an answer's time is additive.
    """
    if concurrency == 1:
        latency = held_s(1) + additive_s
    elif concurrency <= 2 * max_batch:
        latency = 2 * held_s(concurrency / 2)
    else:
        latency = concurrency * held_s(max_batch) / max_batch
    return Rung(items_per_s=concurrency / latency, latency_s=latency)


def _poisson(mean: float, most: int) -> NDArray[np.float64]:
    """Chances of 0 to `most`."""
    counts = np.arange(most + 1)
    chances: NDArray[np.float64] = np.exp(counts * math.log(mean) - mean - gammaln(counts + 1))
    return chances


def _stationary(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The law that a chain keeps: the balance of all states but one, and the sum."""
    balance = steps.T - np.eye(len(steps))
    balance[-1] = 1.0
    right = np.zeros(len(steps))
    right[-1] = 1.0
    return np.linalg.solve(balance, right).astype(np.float64)
