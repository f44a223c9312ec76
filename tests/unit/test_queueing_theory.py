"""The simulator against queueing theory: at fixed seeds within 4 standard errors, and these small enough to tell."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from brim.records import Status
from queueing.arrivals import poisson
from queueing.batcher import Batcher, Service, Simulated, open_loop
from queueing.closed_forms import (
    BatchQueue,
    erlang_b,
    erlang_c,
    md1_wait_quantile_s,
    mdc_wait,
    mg1_wait_s,
    mm1_sojourn_quantile_s,
    mmc_wait_quantile_s,
    mmc_wait_s,
    mmck_rejected,
)

S = 0.01  # mean service time
REQUESTS, WARM_UP, PARTS = 1_000_000, 0.05, 40


def simulated(
    batcher: Batcher, rate: float, *, exponential: bool, seed: int, service: Service | None = None
) -> Simulated:
    noise = np.random.default_rng(seed + 1000).standard_exponential(REQUESTS) if exponential else None
    arrivals_s = poisson(rate, REQUESTS / rate, seed) / 1e9
    return open_loop(arrivals_s, batcher, service or Service.of(batcher, lambda _: S), noise=noise)


def waits(run: Simulated) -> NDArray[np.float64]:
    return run.start_s - run.arrival_s


def latencies(run: Simulated) -> NDArray[np.float64]:
    return run.done_s - run.arrival_s


def agrees(series: NDArray[np.float64 | np.int32 | np.bool_], truth: float, *, within: float) -> None:
    """Batch means after warm-up: the mean is 4 standard errors from the truth at most, and these are under `within`."""
    fresh = series[int(WARM_UP * series.size) :]
    means = fresh[: fresh.size // PARTS * PARTS].reshape(PARTS, -1).mean(axis=1)
    error = means.std(ddof=1) / PARTS**0.5
    assert abs(means.mean() - truth) <= 4 * error, f"{means.mean()} ± {error}, but {truth}"
    assert 4 * error <= within * truth, f"± {error} of {truth} tells nothing"


@pytest.mark.parametrize(("rate", "within"), [(50, 0.03), (80, 0.08)])
def test_one_exponential_server(rate: float, within: float) -> None:
    run = simulated(Batcher(1), rate, exponential=True, seed=1)
    agrees(waits(run), mg1_wait_s(rate, S, 1), within=within)
    for share in (0.5, 0.9, 0.99):
        agrees(latencies(run) <= mm1_sojourn_quantile_s(rate, S, share), share, within=0.05)


@pytest.mark.parametrize(("rate", "within"), [(50, 0.03), (80, 0.05), (90, 0.1)])
def test_one_server_of_fixed_service_time(rate: float, within: float) -> None:
    run = simulated(Batcher(1), rate, exponential=False, seed=2)
    agrees(waits(run), mg1_wait_s(rate, S, 0), within=within)
    agrees(waits(run) > 0, rate * S, within=0.02)
    for share in (0.9, 0.99):
        agrees(waits(run) > md1_wait_quantile_s(rate, S, share), 1 - share, within=0.6)


@pytest.mark.parametrize(("servers", "rate"), [(2, 160), (4, 320)])
def test_several_exponential_servers(servers: int, rate: float) -> None:
    run = simulated(Batcher(1, servers), rate, exponential=True, seed=3)
    agrees(waits(run), mmc_wait_s(rate, S, servers), within=0.08)
    agrees(waits(run) > 0, erlang_c(servers, rate * S), within=0.03)
    agrees(waits(run) > mmc_wait_quantile_s(rate, S, servers, 0.99), 0.01, within=0.5)


@pytest.mark.parametrize(("servers", "rate"), [(2, 160), (4, 320), (8, 640), (2, 180)])
def test_several_servers_of_fixed_service_time(servers: int, rate: float) -> None:
    run = simulated(Batcher(1, servers), rate, exponential=False, seed=4)
    truth = mdc_wait(rate, S, servers)
    agrees(waits(run), truth.mean_s, within=0.1)
    agrees(waits(run) > 1e-9, truth.share, within=0.03)


def test_where_nobody_may_wait_erlangs_share_is_lost() -> None:
    """Whoever waited at all is timed out when an instance is free."""
    run = simulated(Batcher(1, 4, timeout_s=1e-12), 400, exponential=True, seed=5)
    agrees(run.outcome == Status.REJECTED, erlang_b(4, 4.0), within=0.03)


@pytest.mark.parametrize(("queue", "load"), [(1, 1.6), (3, 1.6), (3, 3.0)])
def test_a_bounded_queue_rejects_what_it_must(queue: int, load: float) -> None:
    run = simulated(Batcher(1, 2, max_queue=queue), load / S, exponential=True, seed=6)
    agrees(run.outcome == Status.REJECTED, mmck_rejected(2, load, queue), within=0.03)


@pytest.mark.parametrize(
    ("alpha_ms", "tau0_ms", "load"),
    [(0.1438, 1.8874, 0.1), (0.1438, 1.8874, 0.5), (0.5833, 1.4284, 0.3), (0.5833, 1.4284, 0.5)],
)
def test_batches_without_bound(alpha_ms: float, tau0_ms: float, load: float) -> None:
    """Two published fits of ResNet-50 on a GPU; how idle it is, is compared where it ever is."""
    queue = BatchQueue(rate=load / alpha_ms * 1e3, alpha_s=alpha_ms / 1e3, tau0_s=tau0_ms / 1e3)
    batcher = Batcher(max_batch=200)
    service = Service.of(batcher, lambda b: queue.alpha_s * b + queue.tau0_s)
    run = simulated(batcher, queue.rate, exponential=False, seed=7, service=service)
    exact = queue.exact()
    assert run.batch_items.max() < batcher.max_batch  # it never was a bound
    agrees(latencies(run), exact.latency_s, within=0.02)
    agrees(run.batch_items, exact.batch, within=0.02)
    assert latencies(run).mean() < queue.latency_bound_s() * 1.002
    if exact.idle_share > 0.01:
        idle_s = run.batch_start_s[1:] - run.batch_end_s[:-1]
        agrees(idle_s / np.diff(run.batch_start_s).mean(), exact.idle_share, within=0.05)


def test_instances_that_share_one_rate_of_work_are_one_exponential_server() -> None:
    """As many as there are of them, memoryless batches leave at one rate: the number in the system is M/M/1's."""
    batcher = Batcher(1, 3)
    shared = Service(np.array([[S], [2 * S], [3 * S]]))
    run = simulated(batcher, 70, exponential=True, seed=8, service=shared)
    agrees(latencies(run), 1 / (1 / S - 70), within=0.06)


def test_processor_sharing_does_not_feel_the_law_of_the_service_time() -> None:
    """With an instance for everybody: mean latency s / (1 - load) for fixed service times, as for exponential ones."""
    batcher = Batcher(1, 60)
    shared = Service(S * np.arange(1, 61, dtype=np.float64)[:, None])
    run = simulated(batcher, 60, exponential=False, seed=9, service=shared)
    agrees(latencies(run), S / (1 - 0.6), within=0.05)


def test_full_batches_at_a_known_rate_cross_the_slo_where_they_should() -> None:
    """10 ms a batch of up to 8, 50 ms at p99: 735.7/s, found with another simulator to ± 0.5%."""
    batcher = Batcher(8)
    service = Service.of(batcher, lambda _: S)
    over = [
        (latencies(open_loop(poisson(rate, 4000, seed=10) / 1e9, batcher, service)) > 0.05).mean()
        for rate in (735.7 * 0.99, 735.7 * 1.01)
    ]
    assert over[0] < 0.01 < over[1]


@pytest.mark.parametrize(("rate", "mean_ms", "p99_ms"), [(600, 15.9, 25), (700, None, 36)])
def test_capped_batches_have_the_latencies_that_another_simulator_found(
    rate: float, mean_ms: float | None, p99_ms: float
) -> None:
    batcher = Batcher(8)
    latency_ms = 1e3 * latencies(
        open_loop(poisson(rate, 2000, seed=11) / 1e9, batcher, Service.of(batcher, lambda _: S))
    )
    assert np.percentile(latency_ms, 99) == pytest.approx(p99_ms, abs=0.6)
    assert mean_ms is None or latency_ms.mean() == pytest.approx(mean_ms, abs=0.1)
