"""The batcher's rules by hand, and what must hold for any server and any arrivals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brim.errors import UsageError
from brim.records import Overheads, ServingConfig, Status
from queueing.arrivals import poisson
from queueing.batcher import Batcher, Service, Simulated, closed_loop, open_loop
from queueing.closed_forms import closed_loop_rung

OK, REJECTED = Status.OK, Status.REJECTED
AFFINE = (0.010, 0.001)  # seconds a batch, and an item


def one_second(batcher: Batcher) -> Service:
    return Service.of(batcher, lambda _: 1.0)


def at(arrivals: Sequence[float], batcher: Batcher, **more: object) -> Simulated:
    """Batches of one second, whatever their size."""
    return open_loop(np.array(arrivals, dtype=np.float64), batcher, one_second(batcher), **more)  # type: ignore[arg-type]


def test_an_idle_instance_takes_the_first_alone_and_what_came_meanwhile_is_the_next_batch() -> None:
    run = at([0, 0.1, 0.2, 0.9, 1.5], Batcher(8))
    assert run.start_s.tolist() == [0, 1, 1, 1, 2]
    assert run.done_s.tolist() == [1, 2, 2, 2, 3]
    assert run.batch_items.tolist() == [1, 3, 1]
    assert (run.batch_start_s.tolist(), run.batch_end_s.tolist()) == ([0, 1, 2], [1, 2, 3])


def test_a_batch_is_no_larger_than_the_largest() -> None:
    run = at([0, 0.1, 0.1, 0.1, 0.1], Batcher(3))
    assert run.batch_items.tolist() == [1, 3, 1]


def test_whichever_instance_is_free_takes_the_next_batch() -> None:
    run = at([0, 0.5, 0.6, 0.7], Batcher(8, instances=2))
    assert run.start_s.tolist() == [0, 0.5, 1, 1]
    assert run.batch_instance.tolist() == [0, 1, 0]


def test_a_partial_batch_waits_until_its_oldest_request_has_waited_the_delay() -> None:
    run = at([0, 0.1, 0.4], Batcher(8, delay_s=0.25))
    assert run.batch_start_s.tolist() == [0.25, 1.25]
    assert run.batch_items.tolist() == [2, 1]


def test_a_full_batch_does_not_wait() -> None:
    run = at([0, 0.125, 0.5, 0.625], Batcher(2, instances=2, delay_s=9.0))
    assert run.batch_start_s.tolist() == [0.125, 0.625]


def test_a_preferred_size_does_not_wait_and_the_rest_does() -> None:
    """Three wait when the instance is free at 1.1: two go, the third has its own delay to wait."""
    run = at([0, 0.1, 0.8, 0.9, 1.0], Batcher(8, delay_s=0.5, preferred=(2,)))
    assert run.batch_start_s.tolist() == [0.1, 1.1, 2.1]
    assert run.batch_items.tolist() == [2, 2, 1]


def test_after_the_delay_all_that_fits_goes_whatever_is_preferred() -> None:
    run = at([0, 0.1, 0.2, 0.3, 0.4], Batcher(8, delay_s=0.5, preferred=(2,)))
    assert run.batch_start_s.tolist() == [0.1, 1.1]
    assert run.batch_items.tolist() == [2, 3]


def test_without_delay_no_batch_is_larger_than_the_largest_preferred_size() -> None:
    run = at([0, *[0.5] * 11], Batcher(64, preferred=(2, 4)))
    assert run.batch_items.tolist() == [1, 4, 4, 2, 1]


def test_an_arrival_that_finds_the_queue_full_is_rejected_at_once() -> None:
    run = at([0, 0.1, 0.2, 0.3, 1.5], Batcher(8, max_queue=2))
    assert run.outcome.tolist() == [OK, OK, OK, REJECTED, OK]
    assert run.done_s[3] == 0.3
    assert np.isnan(run.start_s[3])
    assert run.batch_items.tolist() == [1, 2, 1]


def test_what_waited_longer_than_the_timeout_is_rejected_when_the_next_batch_is_formed() -> None:
    run = at([0, 0.25, 0.5, 0.9], Batcher(8, timeout_s=0.5))
    assert run.outcome.tolist() == [OK, REJECTED, OK, OK]
    assert run.done_s.tolist() == [1, 1, 2, 2]


def test_a_rejected_request_gives_its_place_in_the_queue_back_only_then() -> None:
    run = at([0, 0.125, 0.25, 0.75, 1.25], Batcher(1, max_queue=2, timeout_s=0.5))
    assert run.outcome.tolist() == [OK, REJECTED, REJECTED, REJECTED, OK]
    assert run.done_s.tolist() == [1, 1, 1, 0.75, 2.25]


def test_a_batch_takes_whole_requests_while_their_items_fit() -> None:
    """5 + 2 fit into 8, 3 more do not, though the 1 behind them would."""
    run = at([0, 0.1, 0.1, 0.1, 0.1], Batcher(8), items=np.array([1, 5, 2, 3, 1]))
    assert run.batch_items.tolist() == [1, 7, 4]
    assert run.start_s.tolist() == [0, 1, 1, 2, 2]


def test_a_request_above_every_preferred_size_goes_alone() -> None:
    run = at([0, 0.1, 0.1, 0.1], Batcher(8, preferred=(4,)), items=np.array([1, 6, 2, 2]))
    assert run.batch_items.tolist() == [1, 6, 4]


def test_occupancy_holds_the_instance_and_the_additive_part_only_delays_the_answer() -> None:
    overheads = Overheads(occupancy_ms=100, occupancy_per_item_ms=50, additive_ms=7)
    run = at([0, 0.1, 0.1], Batcher(8), overheads=overheads)
    assert run.batch_end_s.tolist() == pytest.approx([1.15, 1.15 + 1.2])
    assert run.done_s.tolist() == pytest.approx([1.157, 2.357, 2.357])


def test_noise_multiplies_successive_batches_and_recorded_times_replace_them() -> None:
    run = at([0, 0, 0], Batcher(1), noise=np.array([1.0, 0.5]))
    assert run.done_s.tolist() == [1, 1.5, 2.5]
    run = at([0, 0, 0], Batcher(1), service_s=np.array([0.25, 3.0, 0.5]))
    assert run.done_s.tolist() == [0.25, 3.25, 3.75]


def test_noise_of_an_instant_meets_the_batch_that_starts_nearest_to_it() -> None:
    freeze = {"noise": np.array([1.0, 3.0, 1.0]), "noise_at_s": np.array([0.0, 4.0, 9.0])}
    assert at([0, 4.2, 9], Batcher(1), **freeze).done_s.tolist() == [1, 7.2, 10]
    # One batch more or less before it, and it is the same requests that a freeze meets.
    assert at([0, 1, 4.2, 9], Batcher(1), **freeze).done_s.tolist() == [1, 2, 7.2, 10]
    assert at([3.5, 20], Batcher(1), **freeze).done_s.tolist() == [6.5, 21]


def test_two_busy_instances_share_one_rate_of_work() -> None:
    """The first does half its work alone, the other half at half the pace; so does the second, the other way round."""
    shared = Service(np.array([[1.0], [2.0]]))
    run = open_loop(np.array([0, 0.5]), Batcher(1, 2), shared)
    assert run.done_s.tolist() == [1.5, 2.0]


def test_three_busy_instances_share_one_rate_of_work() -> None:
    """From 0 alone: 0.25 done. From 0.25 two at half pace: + 0.125. From 0.5 three at a third, ..."""
    shared = Service(np.array([[1.0], [2.0], [3.0]]))
    run = open_loop(np.array([0, 0.25, 0.5, 4.0]), Batcher(1, 3), shared)
    first = 0.5 + 0.625 * 3  # what was left of the first at 0.5
    second = first + (1 - 0.125 - 0.625) * 2
    assert run.done_s.tolist() == pytest.approx([first, second, 3.0, 5.0])
    assert run.batch_end_s.tolist() == run.done_s.tolist()


def test_a_batch_that_follows_another_at_once_changes_nobody_elses_pace() -> None:
    """Two busy throughout: 2 s each, one after the other."""
    shared = Service(np.array([[1.0], [2.0]]))
    run = open_loop(np.zeros(4), Batcher(1, 2), shared)
    assert run.done_s.tolist() == [2, 2, 4, 4]


@pytest.mark.parametrize("concurrency", [1, 2, 4, 8, 16, 24, 32])
@pytest.mark.parametrize("additive_ms", [0.0, 1.0])
def test_the_closed_loop_is_the_ladder(concurrency: int, additive_ms: float) -> None:
    """10.2 ms for one item to 10.75 ms for eight, in occupancy: exactly the closed form, after the first batches."""
    batcher, slope = Batcher(8), 0.55 / 7
    overheads = Overheads(occupancy_ms=0.2 - slope, occupancy_per_item_ms=slope, additive_ms=additive_ms)
    cycle = min(concurrency, 16)  # requests of two batches, or of one cycle
    run = closed_loop(concurrency, 100 * cycle + concurrency, batcher, Service.of(batcher, lambda _: 0.01), overheads)
    rung = closed_loop_rung(concurrency, 8, lambda b: 0.0102 + (b - 1) * slope / 1e3, additive_ms / 1e3)
    done, latency = np.sort(run.done_s), (run.done_s - run.arrival_s)
    settled = slice(20 * cycle, 90 * cycle)
    assert (settled.stop - settled.start) / (done[settled.stop] - done[settled.start]) == pytest.approx(
        rung.items_per_s
    )
    assert latency[settled].mean() == pytest.approx(rung.latency_s)


def test_so_many_clients_always_have_so_many_requests_under_way() -> None:
    batcher = Batcher(4, 2)
    run = closed_loop(13, 2000, batcher, Service.of(batcher, lambda b: 0.01 + 0.001 * b))
    done = np.sort(run.done_s)
    assert (np.diff(run.arrival_s) >= 0).all()
    assert run.arrival_s[13:] == pytest.approx(done[:-13])


def test_a_client_that_is_rejected_asks_again() -> None:
    batcher = Batcher(2, max_queue=1)
    overheads = Overheads(occupancy_ms=0, occupancy_per_item_ms=0, additive_ms=100)
    run = closed_loop(4, 60, batcher, one_second(batcher), overheads)
    assert run.arrival_s.size == 60
    assert 0 < (run.outcome == REJECTED).sum() < 60
    assert (np.diff(run.arrival_s) >= 0).all()


@pytest.mark.parametrize(("max_batch", "instances"), [(1, 1), (8, 1), (8, 2), (5, 3)])
def test_offered_more_it_does_what_full_batches_on_all_instances_do(max_batch: int, instances: int) -> None:
    batcher = Batcher(max_batch, instances)
    held = AFFINE[0] + AFFINE[1] * max_batch
    capacity = instances * max_batch / held
    run = open_loop(
        poisson(2 * capacity, 60, seed=1) / 1e9, batcher, Service.of(batcher, lambda b: AFFINE[0] + AFFINE[1] * b)
    )
    fresh = run.batch_end_s[run.batch_start_s > 10]
    full = run.batch_items[run.batch_start_s > 10][:-instances]
    assert (full == max_batch).all()
    rate = max_batch * (fresh.size - 1 - instances) / (fresh[-1 - instances] - fresh[0])
    assert rate == pytest.approx(capacity, rel=instances / fresh.size)


def test_a_single_item_batch_makes_no_difference_between_batcher_and_plain_servers() -> None:
    """Lindley's recursion: with one server the wait is what the one before had, and its service, less the gap."""
    arrivals_s = poisson(90, 50, seed=2) / 1e9
    noise = np.random.default_rng(2).standard_exponential(arrivals_s.size)
    batcher = Batcher(1)
    run = open_loop(arrivals_s, batcher, Service.of(batcher, lambda _: 0.01), noise=noise)
    wait, waits = 0.0, []
    for gap, factor in zip(np.diff(arrivals_s, append=np.inf), noise, strict=True):
        waits.append(wait)
        wait = max(0.0, wait + 0.01 * factor - gap)
    assert run.start_s - arrivals_s == pytest.approx(np.array(waits), abs=1e-9)


def test_the_same_arrivals_and_noise_give_the_same_answer() -> None:
    def once() -> Simulated:
        batcher = Batcher(8, 2)
        noise = np.random.default_rng(3).gamma(100, 0.01, 5000)
        shared = Service(np.array([[0.010 + 0.001 * b for b in range(8)], [0.017 + 0.002 * b for b in range(8)]]))
        return open_loop(poisson(500, 20, seed=3) / 1e9, batcher, shared, noise=noise)

    first, second = once(), once()
    for name in ("start_s", "done_s", "outcome", "batch_start_s", "batch_end_s", "batch_items", "batch_instance"):
        assert (getattr(first, name) == getattr(second, name)).all()


def test_the_callers_arrays_stay_as_they_are_and_may_be_read_only() -> None:
    arrivals_s = np.array([0, 0.5])
    arrivals_s.setflags(write=False)
    assert at(arrivals_s.tolist(), Batcher(8)).done_s.tolist() == [1, 2]
    assert open_loop(arrivals_s, Batcher(8), one_second(Batcher(8))).done_s.tolist() == [1, 2]
    assert arrivals_s.tolist() == [0, 0.5]


def test_nobody_arrives_nobody_is_served() -> None:
    run = at([], Batcher(8))
    assert (run.done_s.size, run.batch_items.size) == (0, 0)


def test_faster_arrivals_wait_longer_each_and_every_one() -> None:
    """The same pattern, faster: with batches of one nobody gains by it."""
    slow, fast = (poisson(rate, 20_000 / rate, seed=4) / 1e9 for rate in (150, 180))
    batcher = Batcher(1, 2)
    service = Service.of(batcher, lambda _: 0.01)
    count = min(slow.size, fast.size)
    waits = [
        run.start_s[:count] - run.arrival_s[:count] for run in (open_loop(t, batcher, service) for t in (slow, fast))
    ]
    assert (waits[1] >= waits[0] - 1e-9).all()


def test_mean_latency_of_batches_rises_with_the_rate() -> None:
    batcher = Batcher(8)
    means = []
    for rate in (300, 500, 600, 700, 760, 790):
        run = open_loop(poisson(rate, 200_000 / rate, seed=5) / 1e9, batcher, Service.of(batcher, lambda _: 0.01))
        means.append((run.done_s - run.arrival_s).mean())
    assert (np.diff(means) > 0).all()


def test_requests_under_way_are_rate_times_latency() -> None:
    """Little's law, the number looked at 50,000 times: by counting, not by the latencies. 4 standard errors: 2%."""
    batcher = Batcher(8, 2)
    run = open_loop(poisson(1300, 400, seed=6) / 1e9, batcher, Service.of(batcher, lambda _: 0.01))
    instants = np.linspace(10, 390, 50_000)
    under_way = np.searchsorted(run.arrival_s, instants) - np.searchsorted(np.sort(run.done_s), instants)
    between = (run.arrival_s > 10) & (run.arrival_s < 390)
    rate = between.sum() / 380
    assert under_way.mean() == pytest.approx(rate * (run.done_s - run.arrival_s)[between].mean(), rel=0.005)


servers = st.builds(
    Batcher,
    max_batch=st.integers(4, 8),
    instances=st.integers(1, 3),
    delay_s=st.sampled_from([0.0, 0.3, 2.0]),
    preferred=st.sampled_from([(), (4,), (2, 3)]),
    max_queue=st.sampled_from([0, 1, 5]),
    timeout_s=st.sampled_from([0.0, 0.5, 1.5]),
)
gaps = st.lists(st.floats(0, 1.5), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(batcher=servers, gaps=gaps, seed=st.integers(0, 99), slower=st.sampled_from([1.0, 1.7]), each=st.booleans())
def test_every_request_ends_once_and_in_order(
    batcher: Batcher, gaps: list[float], seed: int, slower: float, each: bool
) -> None:
    arrivals_s = np.cumsum(gaps)
    random = np.random.default_rng(seed)
    items = random.integers(1, 5, arrivals_s.size) if each else np.ones(arrivals_s.size, dtype=np.int64)
    pace = slower ** np.arange(batcher.instances)[:, None]
    service = Service(pace * (0.5 + 0.1 * np.arange(1, batcher.max_batch + 1)))
    run = open_loop(arrivals_s, batcher, service, items=items, noise=random.uniform(0.5, 1.5, 100))

    served = run.outcome == OK
    assert run.batch_items.sum() == items[served].sum()  # all that was accepted was served, and once
    assert (run.batch_items <= batcher.max_batch).all()
    assert (np.diff(run.start_s[served]) >= 0).all()  # first come, first served
    assert (run.done_s >= run.arrival_s).all()
    assert (run.start_s[served] >= run.arrival_s[served]).all()
    assert np.isnan(run.start_s[~served]).all()
    assert served.all() or batcher.max_queue or batcher.timeout_s
    if batcher.timeout_s:
        assert (run.start_s - run.arrival_s)[served].max(initial=0) <= batcher.timeout_s
    for instance in range(batcher.instances):  # one batch at a time
        own = run.batch_instance == instance
        assert (run.batch_start_s[own][1:] >= run.batch_end_s[own][:-1]).all()
    if not batcher.delay_s:  # nobody waits while an instance is idle
        for arrived, started in zip(arrivals_s[served], run.start_s[served], strict=True):
            if started > arrived:
                busy = (run.batch_start_s <= arrived) & (run.batch_end_s > arrived)
                assert busy.sum() == batcher.instances
                assert started in run.batch_end_s
    if batcher.delay_s and not batcher.max_queue:  # nobody waits longer than the delay while an instance is idle
        for arrived, started in zip(arrivals_s[served], run.start_s[served], strict=True):
            assert started <= arrived + batcher.delay_s or started in run.batch_end_s


def test_a_serving_configuration_is_a_batcher() -> None:
    config = ServingConfig(
        name="b8", max_batch=8, instances=2, queue_delay_us=500, preferred_batches=(4,), max_queue_size=9,
        queue_timeout_us=2_000_000,
    )  # fmt: skip
    assert Batcher.of(config) == Batcher(8, 2, 0.0005, (4,), 9, 2.0)


def test_what_makes_no_server_is_refused() -> None:
    for wrong, told in (
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_batch": 8, "instances": 0}, "instances is 0"),
        ({"max_batch": 8, "delay_s": -1.0}, "delay_s is -1"),
        ({"max_batch": 8, "delay_s": float("nan")}, "delay_s is nan"),
        ({"max_batch": 8, "timeout_s": float("inf")}, "timeout_s is inf"),
        ({"max_batch": 8, "preferred": (9,)}, "preferred batch 9"),
    ):
        with pytest.raises(UsageError, match=told):
            Batcher(**wrong)
    with pytest.raises(UsageError, match="negative or no number"):
        Service.of(Batcher(2), lambda _: -1.0)
    with pytest.raises(UsageError, match="dimensions"):
        Service(np.ones(3))


def test_what_makes_no_load_is_refused() -> None:
    batcher = Batcher(2)
    with pytest.raises(UsageError, match="not sorted"):
        at([1, 0], batcher)
    with pytest.raises(UsageError, match="not sorted"):
        at([0, float("nan")], batcher)
    with pytest.raises(UsageError, match="more than the 2 of a batch"):
        at([0], batcher, items=np.array([3]))
    with pytest.raises(UsageError, match="but 1 arrivals"):
        at([0], batcher, items=np.array([1, 1]))
    for noise in (np.array([]), np.array([-1.0]), np.array([np.nan])):
        with pytest.raises(UsageError, match="noise"):
            at([0], batcher, noise=noise)
    for instants in ([1.0, 0.0], [0.0]):
        with pytest.raises(UsageError, match="instants for noise of 2"):
            at([0], batcher, noise=np.ones(2), noise_at_s=np.array(instants))
    for early in (
        Overheads(occupancy_ms=-1001, occupancy_per_item_ms=0, additive_ms=0),
        Overheads(occupancy_ms=0, occupancy_per_item_ms=0, additive_ms=-1),
    ):
        with pytest.raises(UsageError, match="before it began"):
            at([0], batcher, overheads=early)
    with pytest.raises(UsageError, match="must be \\(1, 2\\)"):
        open_loop(np.zeros(1), batcher, one_second(Batcher(3)))
    with pytest.raises(UsageError, match="9 clients cannot share 3"):
        closed_loop(9, 3, batcher, one_second(batcher))
