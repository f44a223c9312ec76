"""What limits: each limit from the evidence that shows it, and `unknown` from evidence that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brim.records import Limit, LoadPoint
from judging.limits import Evidence, SenderExperiment, evidence, sender_experiment, what_limits
from judging.steady import Steady
from judging.windows import cut_windows
from tests.unit.simulated import SECOND, closed_loop, constant

MS = 1_000_000
ACQUITTED = SenderExperiment(senders=1, gain=0.002, machine_cpu_share=0.6, pinned_apart=False)
GUILTY = replace(ACQUITTED, gain=0.08)
NO_ROOM = replace(ACQUITTED, machine_cpu_share=0.97)
ENGINE = Evidence(
    in_flight=8,
    max_batch=4,
    instances=1,
    busy_share=0.99,
    effective_batch=4.0,
    queue_ms=100.0,
    latency_ms=203.0,
    outside_ms=3.0,
    outside_ms_lower=3.0,
    machine_cpu_share=0.6,
    server_cpu_cores=1.0,
    server_cores=2.0,
    client_cpu_cores=0.2,
    experiment=ACQUITTED,
)
FRONTEND = replace(ENGINE, busy_share=0.6, effective_batch=2.0, queue_ms=0.1, outside_ms=9.0, server_cpu_cores=1.98)


@pytest.mark.parametrize(
    ("found", "limit"),
    [
        (ENGINE, "engine"),
        (replace(ENGINE, experiment=GUILTY), "client"),  # above all: it shows that nothing else was reached
        (replace(ENGINE, experiment=None), "engine"),
        (replace(ENGINE, max_batch=0, effective_batch=1.0), "engine"),
        (replace(ENGINE, effective_batch=2.0, full_batch=2.0), "engine"),  # profits from no larger one
        (replace(ENGINE, effective_batch=3.0), "batcher"),  # requests wait, batches are not full
        (replace(ENGINE, busy_share=0.9, effective_batch=3.0), "batcher"),  # such as a queue delay
        (replace(ENGINE, effective_batch=2.0, in_flight=4), "unknown"),  # two batches of N/2 alternate
        (replace(ENGINE, busy_share=0.8, machine_cpu_share=0.99), "host"),
        (FRONTEND, "frontend"),
        (replace(FRONTEND, machine_cpu_share=0.96), "host"),
        (replace(FRONTEND, outside_ms_lower=9.0), "unknown"),  # does not grow
        (replace(FRONTEND, outside_ms_lower=None), "unknown"),
        (replace(FRONTEND, server_cpu_cores=1.0), "unknown"),  # the server has cores left
        (replace(FRONTEND, server_cores=None), "unknown"),
        (replace(ENGINE, busy_share=0.9), "unknown"),
        (replace(ENGINE, busy_share=None, effective_batch=None), "unknown"),
    ],
)
def test_the_evidence_names_the_limit(found: Evidence, limit: Limit) -> None:
    named, reasons = what_limits(found)
    assert named == limit
    assert reasons[0]


def test_the_reasons_are_words() -> None:
    assert what_limits(ENGINE)[1] == (
        "engine: busy 99%, batches 4.0 of 4",
        "another sender changed nothing (+0.2%)",
    )
    assert what_limits(replace(ENGINE, experiment=GUILTY))[1] == ("another sender gained +8.0%: 1 sent too slowly",)
    assert "proves nothing: machine CPU 97%" in what_limits(replace(ENGINE, experiment=NO_ROOM))[1][1]
    assert what_limits(replace(ENGINE, experiment=None))[1][1] == "no further sender was tried"
    assert (
        "4 in flight cannot fill batches of 4" in what_limits(replace(ENGINE, effective_batch=2.0, in_flight=4))[1][0]
    )


@pytest.mark.parametrize(
    ("experiment", "convicts", "acquits"),
    [
        (ACQUITTED, False, True),
        (GUILTY, True, False),
        (replace(ACQUITTED, gain=0.03), False, True),
        (replace(ACQUITTED, gain=-0.2), False, True),
        (NO_ROOM, False, False),
        (replace(ACQUITTED, machine_cpu_share=0.9), False, False),
        (replace(NO_ROOM, pinned_apart=True), False, True),
        (replace(ACQUITTED, machine_cpu_share=None), False, False),
    ],
)
def test_the_client_is_acquitted_only_with_room_to_be_faster(
    experiment: SenderExperiment, convicts: bool, acquits: bool
) -> None:
    assert (experiment.convicts, experiment.acquits) == (convicts, acquits)


def test_the_windows_of_a_simulated_server_show_that_its_engine_is_the_limit() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=36, spread_ns=2 * MS)
    windows = cut_windows(
        load.rows,
        load.reads,
        generator="locust",
        point=LoadPoint(concurrency=8),
        steady=Steady(from_ns=load.start_ns + SECOND, unstable=False, halves=0.0, bins=200),
        until_ns=load.until_ns,
        period_ns=100 * MS,
    )[1:]
    experiment = sender_experiment(windows[:2], windows[1:])
    assert (experiment.senders, experiment.pinned_apart) == (1, False)
    assert experiment.gain == pytest.approx(0.0, abs=1e-6)
    assert experiment.machine_cpu_share == pytest.approx(0.6)
    found = evidence(windows, max_batch=4, instances=1, experiment=experiment)
    assert found.effective_batch == 4.0
    assert found.busy_share == pytest.approx(1.0, abs=0.01)
    assert found.queue_ms == pytest.approx(99.0, abs=1.5)  # a batch, less what the answers took to arrive
    assert found.server_cpu_cores == pytest.approx(1.0)
    assert found.client_cpu_cores == pytest.approx(0.1)
    assert what_limits(found)[0] == "engine"
