"""The closed forms against each other, and against values worked out elsewhere."""

from __future__ import annotations

import math

import pytest

from queueing.closed_forms import (
    BatchQueue,
    closed_loop_rung,
    erlang_b,
    erlang_c,
    md1_wait_quantile_s,
    md1_wait_within,
    mdc_wait,
    mg1_wait_s,
    mm1_sojourn_quantile_s,
    mmc_wait_quantile_s,
    mmc_wait_s,
    mmck_rejected,
)

S = 0.01  # service time


def test_one_exponential_server() -> None:
    """80/s of 100/s: 40 ms of wait; half of all within ln 2 / 20, 99% within ln 100 / 20."""
    assert mg1_wait_s(80, S, 1) == pytest.approx(0.040)
    assert mm1_sojourn_quantile_s(80, S, 0.5) == pytest.approx(0.034657, abs=1e-6)
    assert mm1_sojourn_quantile_s(80, S, 0.99) == pytest.approx(0.230259, abs=1e-6)


@pytest.mark.parametrize(("rate", "wait_ms", "p99_ms"), [(50, 5, 33.363), (90, 45, 218.98), (95, 95, 449.38)])
def test_one_server_of_fixed_service_time(rate: float, wait_ms: float, p99_ms: float) -> None:
    assert mg1_wait_s(rate, S, 0) == pytest.approx(wait_ms / 1e3)
    assert md1_wait_quantile_s(rate, S, 0.99) == pytest.approx(p99_ms / 1e3, abs=6e-6)


def test_nobody_waits_less_than_nothing() -> None:
    """Without wait go those who find the server idle, 1 - load; the tail falls off exponentially."""
    assert md1_wait_within(80, S, 0.0) == pytest.approx(0.2)
    assert [md1_wait_quantile_s(80, S, p) for p in (0.5, 0.9, 0.99)] == pytest.approx(
        [0.012759, 0.050115, 0.103559], abs=1e-6
    )


@pytest.mark.parametrize(
    ("servers", "rate", "waiting", "wait_ms", "p99_ms"),
    [(2, 160, 0.711111, 17.778, 106.606), (4, 320, 0.596432, 7.4554, 51.105)],
)
def test_several_exponential_servers(servers: int, rate: float, waiting: float, wait_ms: float, p99_ms: float) -> None:
    assert erlang_c(servers, rate * S) == pytest.approx(waiting, abs=1e-6)
    assert mmc_wait_s(rate, S, servers) == pytest.approx(wait_ms / 1e3, rel=1e-4)
    assert mmc_wait_quantile_s(rate, S, servers, 0.99) == pytest.approx(p99_ms / 1e3, rel=1e-4)
    assert mmc_wait_quantile_s(rate, S, servers, 0.2) == 0


def test_erlang_by_its_sums() -> None:
    """Ten servers at a load of eight, term by term."""
    terms = [8**n / math.factorial(n) for n in range(11)]
    assert erlang_b(10, 8) == pytest.approx(terms[10] / sum(terms))
    assert erlang_c(10, 8) == pytest.approx(5 * terms[10] / (sum(terms[:10]) + 5 * terms[10]))
    assert (erlang_b(10, 8), erlang_c(10, 8)) == pytest.approx((0.121661, 0.409180), abs=1e-6)


def test_a_bounded_queue_rejects_by_its_sums() -> None:
    """Two servers at a load of 1.6, three may wait: the chance of the fullest state."""
    states = [1, 1.6, 1.6**2 / 2] + [1.6**2 / 2 * 0.8**n for n in (1, 2, 3)]
    assert mmck_rejected(2, 1.6, 3) == pytest.approx(states[-1] / sum(states))
    assert mmck_rejected(2, 1.6, 0) == pytest.approx(erlang_b(2, 1.6))
    assert mmck_rejected(1, 1.0, 4) == pytest.approx(1 / 6)  # all six states alike


@pytest.mark.parametrize(
    ("servers", "rate", "wait_ms", "waiting"),
    [(2, 160, 9.0328, 0.7019), (4, 320, 3.8609, 0.5783), (8, 640, 1.5195, 0.4338), (2, 180, 21.469, 0.8471)],
)
def test_several_servers_of_fixed_service_time(servers: int, rate: float, wait_ms: float, waiting: float) -> None:
    wait = mdc_wait(rate, S, servers)
    assert wait.mean_s == pytest.approx(wait_ms / 1e3, rel=1e-4)
    assert wait.share == pytest.approx(waiting, abs=1e-4)


def test_of_several_servers_one_is_the_single_server() -> None:
    assert mdc_wait(80, S, 1).mean_s == pytest.approx(mg1_wait_s(80, S, 0))
    assert mdc_wait(80, S, 1).share == pytest.approx(0.8)
    assert mmc_wait_s(80, S, 1) == pytest.approx(mg1_wait_s(80, S, 1))


V100, P4 = (0.1438, 1.8874), (0.5833, 1.4284)  # ms an item, and ms a batch


@pytest.mark.parametrize(
    ("gpu", "load", "bound_ms", "latency_ms", "batch", "idle"),
    [
        (V100, 0.1, 3.2982, 3.1459, 1.7115, 0.1331),
        (V100, 0.3, 4.2262, 4.2248, 5.6316, 0.0008),
        (V100, 0.5, 5.9019, 5.9019, 13.125, 0.0),
        (V100, 0.7, 9.8176, 9.8176, 30.625, 0.0),
        (V100, 0.9, 29.4084, 29.4084, 118.13, 0.0),
        (P4, 0.1, 2.4322, 2.4211, 1.0550, 0.6679),
        (P4, 0.3, 3.7980, 3.5345, 1.4988, 0.2098),
        (P4, 0.5, 5.2574, 5.1846, 2.6515, 0.0382),
        (P4, 0.7, 8.6860, 8.6773, 5.7641, 0.0026),
        (P4, 0.9, 25.8775, 25.8774, 22.0408, 0.0),
    ],
)
def test_unbounded_batches(
    gpu: tuple[float, float], load: float, bound_ms: float, latency_ms: float, batch: float, idle: float
) -> None:
    alpha, tau0 = gpu
    queue = BatchQueue(rate=load / alpha * 1e3, alpha_s=alpha / 1e3, tau0_s=tau0 / 1e3)
    exact = queue.exact()
    assert queue.latency_bound_s() == pytest.approx(bound_ms / 1e3, abs=6e-8)
    assert exact.latency_s == pytest.approx(latency_ms / 1e3, abs=6e-8)
    assert exact.latency_s <= queue.latency_bound_s() * (1 + 1e-9)
    assert exact.batch == pytest.approx(batch, rel=1e-4)
    assert exact.idle_share == pytest.approx(idle, abs=6e-5)


def test_mean_latency_of_unbounded_batches_follows_from_their_mean_size() -> None:
    """His lemmas 2 and 3 together, without the law of the batch size."""
    rate, alpha, tau0 = 800.0, 0.5833e-3, 1.4284e-3
    exact = BatchQueue(rate=rate, alpha_s=alpha, tau0_s=tau0).exact()
    load, starts = rate * alpha, rate * tau0
    spread = (1 + 2 * load * starts + starts**2 / exact.batch) / (1 - load**2)
    assert exact.latency_s == pytest.approx(tau0 - 1 / (2 * rate) + (1 + 2 * load) / (2 * rate) * spread)


@pytest.mark.parametrize(
    ("concurrency", "items_per_s", "latency_ms"),
    [(1, 1e3 / 11.2, 11.2), (2, 2e3 / 20.4, 20.4), (16, 16e3 / 21.5, 21.5), (32, 8e3 / 10.75, 43.0)],
)
def test_two_batches_alternate_in_a_closed_loop(concurrency: int, items_per_s: float, latency_ms: float) -> None:
    """An instance is held 10.2 ms by one item and 10.75 ms by eight; an answer takes another millisecond."""
    rung = closed_loop_rung(concurrency, 8, lambda b: (10.2 + (b - 1) * 0.55 / 7) / 1e3, 0.001)
    assert rung.items_per_s == pytest.approx(items_per_s)
    assert rung.latency_s == pytest.approx(latency_ms / 1e3)
