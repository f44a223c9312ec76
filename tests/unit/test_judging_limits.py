"""What limits: each limit from the evidence that shows it, its words, and `unknown` from evidence that does not."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from brim.records import Limit, LoadPoint, ServerDelta, StepCount, Window
from judging.evidence import (
    Evidence,
    SenderExperiment,
    StepLoad,
    TransferExperiment,
    of_point,
    sender_experiment,
)
from judging.limits import what_limits
from judging.steady import Steady
from judging.windows import cut_windows
from tests.unit.simulated import SECOND, closed_loop, constant

MS = 1_000_000
ACQUITTED = SenderExperiment(senders=1, gain=0.002, machine_cpu_share=0.6, pinned_apart=False)
GUILTY = replace(ACQUITTED, gain=0.08)
NO_ROOM = replace(ACQUITTED, machine_cpu_share=0.97)
APART = replace(NO_ROOM, pinned_apart=True, own_cpu_share=0.5)
FEWER_BYTES = TransferExperiment(gain=0.5, how="over shared memory")

#: Two full batches in flight on a server of which nothing is at its limit but the engine.
ENGINE = Evidence(
    in_flight=8,
    max_batch=4,
    instances=1,
    busy_share=0.99,
    effective_batch=4.0,
    pause_ms=1.0,
    queue_ms=100.0,
    latency_ms=203.0,
    machine_cpu_share=0.6,
    server_cpu_cores=1.0,
    server_cores=2.0,
    client_cpu_cores=0.2,
    experiment=ACQUITTED,
)
#: The engine waits for what comes too slowly.
STARVED = replace(
    ENGINE,
    busy_share=0.6,
    effective_batch=2.0,
    queue_ms=0.1,
    latency_ms=10.0,
    outside_ms=9.0,
    outside_ms_lower=3.0,
    outside_share=0.9,
)
#: null on one core, its sender on another, 64 in flight: as measured.
PINNED_NULL = Evidence(
    in_flight=64,
    max_batch=8,
    instances=1,
    busy_share=0.71,
    effective_batch=7.98,
    pause_ms=0.2,
    queue_ms=4.17,
    latency_ms=5.57,
    machine_cpu_share=0.72,
    server_cpu_cores=0.99,
    server_cores=1.0,
    client_cpu_cores=0.43,
    experiment=replace(APART, own_cpu_share=0.43, machine_cpu_share=0.72),
)
#: null with four instances, server and sender on the same two cores: as measured.
FULL_HOST = replace(
    PINNED_NULL,
    instances=4,
    busy_share=0.33,
    effective_batch=1.48,
    queue_ms=0.26,
    latency_ms=10.5,
    machine_cpu_share=0.99,
    server_cpu_cores=1.24,
    server_cores=2.0,
    experiment=NO_ROOM,
)
#: A queue delay of 50 ms, 4 in flight, batches of 8, service 10 ms: as measured.
HELD = replace(
    ENGINE,
    in_flight=4,
    max_batch=8,
    busy_share=0.18,
    effective_batch=4.0,
    pause_ms=51.0,
    queue_ms=50.24,
    latency_ms=61.84,
    server_cpu_cores=0.04,
    client_cpu_cores=0.03,
)
ENSEMBLE = replace(
    ENGINE,
    max_batch=8,
    in_flight=32,
    busy_share=0.49,
    effective_batch=4.3,
    pause_ms=None,
    steps=(
        StepLoad(name="resize", busy_share=0.99, effective_batch=8.0),
        StepLoad(name="network", busy_share=0.49, effective_batch=4.3),
    ),
)
REMOTE = replace(STARVED, machine_cpu_share=None, server_cpu_cores=None, server_cores=None, payload_bytes_per_s=100e6)


@pytest.mark.parametrize(
    ("found", "limit"),
    [
        (ENGINE, "engine"),
        (replace(ENGINE, busy_share=0.98, effective_batch=3.92), "engine"),
        (replace(ENGINE, experiment=None), "engine"),
        (replace(ENGINE, max_batch=0, effective_batch=1.0), "engine"),
        (replace(ENGINE, effective_batch=2.0, full_batch=2.0), "engine"),  # profits from no larger one
        (replace(ENGINE, machine_cpu_share=0.99, experiment=NO_ROOM), "engine"),  # a CPU's cores are full, of course
        (replace(ENGINE, busy_share=0.95), "engine"),  # 0.6 ms from batch to batch of 10 ms, and never without work
        (replace(ENGINE, busy_share=0.9), "engine"),
        (replace(ENGINE, busy_share=0.89), "batcher"),
        (replace(ENGINE, busy_share=0.95, queue_ms=10.0), "unknown"),  # hardly anything waits: it is fed too slowly
        (replace(ENGINE, busy_share=0.95, machine_cpu_share=0.95), "host"),
        (replace(ENGINE, busy_share=0.95, machine_cpu_share=0.95, server_cpu_cores=0.05), "engine"),  # filled by others
        (replace(FULL_HOST, server_cpu_cores=0.5), "unknown"),
        (replace(ENGINE, effective_batch=3.9), "batcher"),  # requests wait, batches are not full
        (replace(ENGINE, effective_batch=2.0, in_flight=4), "unknown"),  # two batches of N/2 alternate
        (HELD, "batcher"),
        (replace(HELD, machine_cpu_share=1.0), "batcher"),  # held back all the same
        (replace(HELD, pause_ms=20.0, busy_share=0.97), "unknown"),  # too few in flight for anything else
        (replace(HELD, queue_ms=30.0), "unknown"),
        (STARVED, "frontend"),  # by elimination: acquitted client, nothing waits, only transport grows
        (replace(STARVED, outside_ms_lower=8.74), "unknown"),  # grew by less than 3%
        (replace(STARVED, outside_ms_lower=None), "unknown"),
        (replace(STARVED, experiment=NO_ROOM), "unknown"),
        (replace(STARVED, experiment=None), "unknown"),
        (replace(STARVED, server_cores=None), "unknown"),
        (PINNED_NULL, "frontend"),
        (replace(PINNED_NULL, server_cpu_cores=0.95), "frontend"),
        (replace(PINNED_NULL, server_cpu_cores=0.94), "batcher"),  # the hand-over from batch to batch is left
        (replace(PINNED_NULL, machine_cpu_share=0.96), "frontend"),  # of the server's own cores it is known
        (replace(PINNED_NULL, busy_share=0.98), "engine"),
        (FULL_HOST, "host"),
        (replace(FULL_HOST, machine_cpu_share=0.9), "host"),  # where no further sender could be acquitted
        (replace(FULL_HOST, machine_cpu_share=0.89), "unknown"),
        (ENSEMBLE, "preprocessing"),
        (replace(ENSEMBLE, steps=(replace(ENSEMBLE.steps[0], busy_share=0.9), ENSEMBLE.steps[1])), "preprocessing"),
        (replace(ENSEMBLE, steps=(replace(ENSEMBLE.steps[0], busy_share=0.89), ENSEMBLE.steps[1])), "batcher"),
        (
            replace(ENSEMBLE, queue_ms=1.0, steps=(replace(ENSEMBLE.steps[0], busy_share=0.97), ENSEMBLE.steps[1])),
            "unknown",  # hardly anything waits for it
        ),
        (
            replace(
                ENSEMBLE,
                busy_share=0.99,
                effective_batch=8.0,
                steps=(ENSEMBLE.steps[0], replace(ENSEMBLE.steps[1], busy_share=0.99, effective_batch=8.0)),
            ),
            "engine",
        ),
        (replace(FULL_HOST, transfer=FEWER_BYTES), "transfer"),
        (replace(ENGINE, transfer=FEWER_BYTES), "transfer"),  # the engine could do more: it was shown
        (replace(FULL_HOST, transfer=replace(FEWER_BYTES, gain=0.03)), "host"),
        (replace(REMOTE, link_bytes_per_s=125e6), "network"),
        (replace(REMOTE, link_bytes_per_s=126e6), "unknown"),
        (replace(REMOTE, link_bytes_per_s=None), "unknown"),
        (replace(REMOTE, link_bytes_per_s=125e6, transfer=FEWER_BYTES), "network"),  # which names what is full
        (replace(ENGINE, busy_share=None, effective_batch=None), "unknown"),
    ],
)
def test_the_evidence_names_the_limit(found: Evidence, limit: Limit) -> None:
    named, reasons = what_limits(found)
    assert named == limit
    assert reasons[0].startswith(f"{limit}: ")


@pytest.mark.parametrize(
    "found", [ENGINE, HELD, STARVED, PINNED_NULL, FULL_HOST, ENSEMBLE, REMOTE, replace(ENGINE, transfer=FEWER_BYTES)]
)
def test_a_client_that_another_sender_helped_is_the_limit_whatever_else_is_seen(found: Evidence) -> None:
    assert what_limits(replace(found, experiment=GUILTY))[0] == "client"


def test_the_reasons_are_words() -> None:
    assert what_limits(ENGINE)[1] == ("engine: busy 99%, batches 4.0 of 4", "another sender changed nothing (+0.2%)")
    assert what_limits(replace(ENGINE, experiment=GUILTY))[1] == ("another sender gained +8.0%: 1 sent too slowly",)
    assert what_limits(replace(ENGINE, experiment=None))[1][1] == "no further sender was tried"
    assert "proves nothing: machine CPU 97%" in what_limits(replace(ENGINE, experiment=NO_ROOM))[1][1]
    assert what_limits(replace(ENGINE, busy_share=0.95, pause_ms=0.6))[1][0] == (
        "engine: busy 95%, batches 4.0 of 4, the next batch always waits, 0.60 ms pass between batches"
    )
    assert what_limits(HELD)[1][0] == (
        "batcher: requests wait 50.2 ms of 61.8 while nothing runs for 51.0 ms before each batch, "
        "busy 18%, batches 4.0 of 8"
    )
    assert what_limits(PINNED_NULL)[1][0] == ("frontend: server at 0.99 of its 1 cores, yet busy 71%, batches 8.0 of 8")
    assert what_limits(FULL_HOST)[1][0] == (
        "host: all cores busy (99%), busy 33%, batches 1.5 of 8, CPU-seconds a second: server 1.24, client 0.43"
    )
    assert what_limits(ENSEMBLE)[1][0] == (
        "preprocessing: resize busy 99%, batches 8.0, while network busy 49%, batches 4.3"
    )
    assert what_limits(STARVED)[1][2] == "transport 90% of the latency (from 3.0 to 9.0 ms as the load grew)"
    others = replace(FULL_HOST, server_cpu_cores=0.5)
    assert (
        "machine CPU 99%, mostly of other processes; CPU-seconds a second: server 0.50, client 0.43"
        in what_limits(others)[1]
    )
    few = replace(ENGINE, effective_batch=2.0, in_flight=4)
    assert "4 in flight cannot fill batches of 4" in what_limits(few)[1][0]


def test_the_bytes_are_told_against_what_a_copy_and_a_link_can_carry() -> None:
    found = replace(FULL_HOST, payload_bytes_per_s=1.2e9, loopback_bytes_per_s=3.1e9)
    assert "payload 1.2 GB/s of 3.1 GB/s loopback copy" in what_limits(found)[1]
    assert (
        "the same items over shared memory gained nothing (+1.0%)"
        in what_limits(replace(found, transfer=replace(FEWER_BYTES, gain=0.01)))[1]
    )
    assert what_limits(replace(found, transfer=FEWER_BYTES))[1][0] == (
        "transfer: the same items over shared memory gained +50.0%; busy 33%, batches 1.5 of 8"
    )
    told = what_limits(replace(REMOTE, payload_bytes_per_s=10e6, link_bytes_per_s=12.5e6))[1][0]
    assert told == "network: 10.0 MB/s of the link's 12.5 MB/s, busy 60%, batches 2.0 of 4"


@pytest.mark.parametrize(
    ("experiment", "convicts", "acquits"),
    [
        (ACQUITTED, False, True),
        (GUILTY, True, False),
        (replace(ACQUITTED, gain=0.03), False, True),
        (replace(ACQUITTED, gain=-0.2), False, True),
        (NO_ROOM, False, False),
        (replace(ACQUITTED, machine_cpu_share=0.9), False, False),
        (APART, False, True),
        (replace(APART, own_cpu_share=None), False, True),
        (replace(APART, own_cpu_share=0.9), False, False),  # both senders shared one full core
        (replace(ACQUITTED, machine_cpu_share=None), False, False),
    ],
)
def test_the_client_is_acquitted_only_with_room_to_be_faster(
    experiment: SenderExperiment, convicts: bool, acquits: bool
) -> None:
    assert (experiment.convicts, experiment.acquits) == (convicts, acquits)
    if not convicts:
        assert ("proves nothing" in experiment.words()) is not acquits


@functools.cache
def simulated(*, spread_ns: int, senders: int = 1) -> tuple[Window, ...]:
    """A server of 40 items/s, 8 in flight; each of the senders takes `spread_ns` to read the answers of one batch."""
    load = closed_loop(
        concurrency=8, max_batch=4, service=constant(100 * MS), seconds=36, spread_ns=spread_ns // senders
    )
    windows = cut_windows(
        load.rows,
        load.reads,
        generator="locust",
        point=LoadPoint(concurrency=8, senders=senders),
        steady=Steady(from_ns=load.start_ns + SECOND, unstable=False, halves=0.0, bins=200),
        until_ns=load.until_ns,
        period_ns=100 * MS,
    )
    return tuple(windows[1:])


def test_the_windows_of_a_simulated_server_show_that_its_engine_is_the_limit() -> None:
    windows = simulated(spread_ns=2 * MS)
    experiment = sender_experiment(windows[:2], windows[1:])
    assert (experiment.senders, experiment.pinned_apart) == (1, False)
    assert experiment.gain == pytest.approx(0.0, abs=1e-6)
    assert experiment.machine_cpu_share == pytest.approx(0.6)
    found = of_point(windows, max_batch=4, instances=1, experiment=experiment, request_bytes=1000)
    assert found.effective_batch == 4.0
    assert found.busy_share == pytest.approx(1.0, abs=0.01)
    assert found.pause_ms == pytest.approx(0.0, abs=1.0)
    assert found.queue_ms == pytest.approx(99.0, abs=1.5)  # a batch, less what the answers took to arrive
    assert found.outside_share == pytest.approx(0.75 / 199.75, rel=0.1)  # half of the spread but one step
    assert found.server_cpu_cores == pytest.approx(1.0)
    assert found.client_cpu_cores == pytest.approx(0.1)
    assert found.payload_bytes_per_s == pytest.approx(40_000, rel=0.01)
    assert what_limits(found)[0] == "engine"


def test_a_simulated_client_that_reads_its_answers_slowly_is_convicted_by_one_more() -> None:
    slow, two = simulated(spread_ns=400 * MS), simulated(spread_ns=400 * MS, senders=2)
    assert slow[0].items_per_s < 0.9 * two[0].items_per_s
    experiment = sender_experiment(slow, two)
    found = of_point(slow, max_batch=4, instances=1, experiment=experiment)
    assert what_limits(found)[0] == "client"
    innocent = replace(found, experiment=sender_experiment(two, two))
    assert what_limits(innocent)[0] != "client"


def test_senders_with_cores_of_their_own_are_judged_by_how_full_these_are() -> None:
    windows = simulated(spread_ns=2 * MS)
    assert sender_experiment(windows, windows, own_cores=1).own_cpu_share == pytest.approx(0.1)
    assert sender_experiment(windows, windows, own_cores=2).own_cpu_share == pytest.approx(0.05)


def test_of_an_ensemble_the_last_step_is_the_engine_and_its_own_counters_are_not_believed() -> None:
    """As Triton tells it: each request of the ensemble counts as a batch, and its time as that of all its steps."""
    plain = simulated(spread_ns=2 * MS)[0]
    first = StepCount(inference_count=400, execution_count=50, success_count=400, queue_ns=400 * 50 * MS, busy_ns=0)
    last = replace(first, execution_count=100, queue_ns=400 * 10 * MS, busy_ns=5 * SECOND, instances=2)
    server = ServerDelta(
        read_width_ns=MS,
        seconds=10.0,
        inference_count=400,
        execution_count=400,
        success_count=400,
        fail_count=0,
        queue_ns=0,
        request_ns=400 * 150 * MS,
        batch_counts={"1": 400},
        busy_ns=100 * SECOND,
        infer_ns=100 * SECOND,
        steps={"resize": replace(first, busy_ns=10 * SECOND), "network": last},
    )
    found = of_point([replace(plain, server=server)], max_batch=8, instances=1)
    assert found.steps == (
        StepLoad(name="resize", busy_share=1.0, effective_batch=8.0),
        StepLoad(name="network", busy_share=0.25, effective_batch=4.0),
    )
    assert (found.busy_share, found.effective_batch, found.queue_ms) == (0.25, 4.0, 60.0)
    assert what_limits(found)[0] == "preprocessing"


def test_how_time_outside_the_server_grows_is_taken_from_the_two_points_given() -> None:
    few, many = simulated(spread_ns=2 * MS), simulated(spread_ns=40 * MS)
    found = of_point(few, max_batch=4, instances=1, lower=few, higher=many)
    assert found.outside_ms_lower == pytest.approx(0.75, rel=0.1)
    assert found.outside_ms == pytest.approx(15.0, rel=0.1)
    assert of_point(few, max_batch=4, instances=1, lower=few).outside_ms == found.outside_ms_lower


def test_of_a_server_elsewhere_the_cores_that_were_watched_say_nothing_and_of_one_here_no_link_does() -> None:
    windows = simulated(spread_ns=2 * MS)
    remote = of_point(windows, max_batch=4, instances=1, local=False, link_bytes_per_s=1e9)
    assert (remote.machine_cpu_share, remote.link_bytes_per_s) == (None, 1e9)
    here = of_point(windows, max_batch=4, instances=1, link_bytes_per_s=1e9)
    assert here.machine_cpu_share == pytest.approx(0.6)
    assert here.link_bytes_per_s is None
