"""What a known server's log says, by arithmetic."""

from __future__ import annotations

import pytest

from judging import truth
from judging.truth import Log

MS = 1_000_000


def a_log(
    *, period_ms: float, service_ms: float = 20.0, items: int = 8, batches: int = 500, from_ms: float = 0.0
) -> Log:
    """One instance that begins such a batch every so often."""
    lines = [
        (round((from_ms + i * period_ms) * MS), round((from_ms + i * period_ms + service_ms) * MS), items)
        for i in range(batches)
    ]
    return Log.of({"0": lines})


def both(one: Log, other: Log) -> Log:
    return Log(instances=one.instances + other.instances)


def test_an_execution_that_straddles_an_edge_counts_by_its_share_of_time() -> None:
    log = Log.of({"0": [(0, 10 * MS, 4), (10 * MS, 20 * MS, 8)]})
    # 5 ms of the first, 5 ms of the second: 2 + 4 items in 10 ms
    assert truth.rate(log, 5 * MS, 15 * MS) == pytest.approx(600.0)


@pytest.mark.parametrize("from_ms", [0.0, 3.0, 17.5])
def test_over_whole_periods_the_rate_is_items_a_period_wherever_the_stretch_begins(from_ms: float) -> None:
    log = a_log(period_ms=21.0)
    start_ns = round((1000 + from_ms) * MS)
    assert truth.rate(log, start_ns, start_ns + 100 * 21 * MS) == pytest.approx(8 / 0.021, rel=1e-9)


def test_full_batches_of_two_instances_with_periods_of_their_own_add_up() -> None:
    log = both(a_log(period_ms=20.5), a_log(period_ms=22.0, from_ms=7.0))
    assert truth.full_rate(log, 1000 * MS, 9000 * MS, 8) == pytest.approx(8 / 0.0205 + 8 / 0.022)


def test_of_the_periods_at_the_edges_their_share_counts() -> None:
    log = Log.of({"0": [(at * MS, at * MS + 1, 8) for at in (0, 10, 40, 60)]})
    # half of 10 ms, all of 30 ms, a quarter of 20 ms: 1.75 periods in 40 ms
    assert truth.full_rate(log, 5 * MS, 45 * MS, 8) == pytest.approx(8 * 1.75 / 0.040)


def test_batches_that_were_not_full_say_nothing_of_the_capacity() -> None:
    full = [(i * 20 * MS, i * 20 * MS + 15 * MS, 8) for i in range(100)]
    short = [(2000 * MS + i * 5 * MS, 2000 * MS + i * 5 * MS + 4 * MS, 3) for i in range(100)]
    assert truth.full_rate(Log.of({"0": full + short}), 0, 3000 * MS, 8) == pytest.approx(8 / 0.020)
    assert truth.full_rate(Log.of({"0": short}), 0, 3000 * MS, 8) is None
    assert truth.full_rate(Log.of({"0": full, "1": short}), 0, 3000 * MS, 8) is None
    assert truth.full_rate(Log.of({}), 0, 3000 * MS, 8) is None


def test_a_batch_belongs_to_the_stretch_in_which_it_ended() -> None:
    log = Log.of({"0": [(0, 10, 2)], "1": [(0, 11, 4), (11, 20, 6), (20, 31, 8)]})
    assert truth.mean_batch(log, 10, 20) == 5.0
    assert truth.mean_batch(log, 31, 99) is None


def test_so_many_in_flight_at_that_rate_must_wait_for_as_long_as_littles_law_says() -> None:
    log = a_log(period_ms=20.0)  # 400 items/s: 16 requests of two items wait 80 ms
    waited = truth.latency_ms(log, 1000 * MS, 3000 * MS, requests=16, items_per_request=2)
    assert waited == pytest.approx(80.0)
    assert truth.latency_ms(log, 10**12, 2 * 10**12, requests=16, items_per_request=2) is None
