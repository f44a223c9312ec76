"""Accounting and the eight rules, each held, broken and not applicable; figures by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brim.records import (
    Calibration,
    CalibrationRow,
    Check,
    Cpu,
    CrossCheck,
    Environment,
    Latency,
    LoadPoint,
    ServerDelta,
    Status,
    StepCount,
    Window,
)
from judging import checks
from judging.accounting import Finding, items_by_status, littles_law, load_adds_up, window_adds_up
from judging.evidence import SenderExperiment
from judging.rows import ROW_DTYPE, Rows
from judging.steady import Steady
from judging.windows import Generator, cut_windows, server_delta
from tests.unit.simulated import SECOND, closed_loop, constant

MS = 1_000_000
#: Ten seconds of a server that does 40 items/s in batches of 4, loaded by 8 requests in flight.
SERVER = ServerDelta(
    read_width_ns=2 * MS,
    seconds=10.0,
    inference_count=400,
    execution_count=100,
    success_count=400,
    fail_count=0,
    queue_ns=400 * 100 * MS,
    request_ns=400 * 200 * MS,
    batch_counts={"4": 100},
    busy_ns=9_900 * MS,
    infer_ns=9_800 * MS,
)
WINDOW = Window(
    generator="locust",
    point=LoadPoint(concurrency=8),
    start_ns=0,
    end_ns=10 * SECOND,
    items_ok=400,
    in_flight_start=4,
    sent=400,
    ok=400,
    rejected=0,
    timed_out=0,
    failed=0,
    cancelled=0,
    in_flight_end=4,
    latency_ms=Latency(mean=200.0, p50=200.0, p90=200.0, p95=200.0, p99=200.0),
    server=SERVER,
    cpu=Cpu(client_s=1.0, server_s=10.0, machine_share=0.6),
)
EXPERIMENT = SenderExperiment(senders=1, gain=0.002, machine_cpu_share=0.6, pinned_apart=False)


def at_rate(items_per_s: float, generator: Generator = "locust") -> Window:
    items = round(items_per_s * 10)
    return replace(WINDOW, items_ok=items, generator=generator)


def items(**counts: int) -> dict[Status, int]:
    return {status: counts.get(status.name.lower(), 0) for status in Status}


# ---------------------------------------------------------------------------- accounting


def test_items_are_summed_by_how_their_requests_ended() -> None:
    rows = np.array([(0, 0, 1, 3, 0, Status.OK)] * 2 + [(0, 0, 1, 5, 0, Status.FAILED)], dtype=ROW_DTYPE).view(Rows)
    assert items_by_status(rows) == items(ok=6, failed=5)


@pytest.mark.parametrize(
    ("counted", "inferred", "outside"),
    [
        (items(ok=100), 100, 0),
        (items(ok=100), 99, 1),  # equal where none failed
        (items(ok=100), 101, 1),
        (items(ok=100, rejected=9), 101, 1),  # a rejected request never reaches the engine
        (items(ok=100, timed_out=1, cancelled=2, failed=3), 106, 0),
        (items(ok=100, timed_out=1, cancelled=2, failed=3), 107, 1),
        (items(ok=100, timed_out=1, cancelled=2, failed=3), 99, 1),
    ],
)
def test_a_whole_load_adds_up_against_the_server(counted: dict[Status, int], inferred: int, outside: int) -> None:
    found = load_adds_up(counted, inferred)
    assert (found.value, found.held) == (outside, outside == 0)


def test_a_window_may_differ_by_what_is_in_flight_and_what_passes_during_the_reads() -> None:
    def off(by: int, server: ServerDelta = SERVER) -> bool:
        found = window_adds_up(replace(WINDOW, server=replace(server, inference_count=400 + by)))
        assert found is not None
        return found.held

    assert (off(8), off(-8), off(9), off(-9)) == (True, True, False, False)  # 8 in flight + 40/s x 2 ms
    assert off(9, replace(SERVER, read_width_ns=25 * MS))  # 40/s x 25 ms = 1 item more
    assert window_adds_up(replace(WINDOW, server=None)) is None


def test_littles_law_allows_five_percent() -> None:
    def at(mean_ms: float) -> Finding:
        latency = Latency(mean=mean_ms, p50=1, p90=1, p95=1, p99=1)
        found = littles_law(replace(WINDOW, latency_ms=latency))
        assert found is not None
        return found

    assert at(200.0).value == 0.0
    assert (at(190.5).held, at(189.5).held, at(209.5).held, at(210.5).held) == (True, False, True, False)


def test_littles_law_is_not_asked_where_its_terms_mean_something_else() -> None:
    assert (
        littles_law(replace(WINDOW, point=LoadPoint(mode="open", rate_per_s=40.0, arrivals="poisson", outstanding=64)))
        is None
    )
    assert littles_law(replace(WINDOW, ok=392, rejected=8)) is None
    assert littles_law(replace(WINDOW, latency_ms=None)) is None


def test_a_simulated_load_adds_up_in_every_way() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(97 * MS), seconds=26, spread_ns=5 * MS)
    whole = server_delta(load.reads[0], load.reads[-1])
    assert load_adds_up(items_by_status(load.rows), whole.inference_count).held
    windows = cut_windows(
        load.rows,
        load.reads,
        generator="locust",
        point=LoadPoint(concurrency=8),
        steady=Steady(from_ns=load.start_ns + SECOND, unstable=False, halves=0.0, bins=200),
        until_ns=load.until_ns,
        period_ns=97 * MS,
    )
    findings = [find(w) for w in windows[1:] for find in (window_adds_up, littles_law)]
    assert len(findings) == 4
    assert checks.accounting(findings).state == "held"


def test_rule_1_names_what_does_not_add_up() -> None:
    broken = Finding(value=3, bound=0, text="whole load: server inferred 103 items, clients 100")
    fine = Finding(value=0, bound=0, text="fine")
    assert checks.accounting([fine, None, broken]) == Check(
        rule=1, name="accounting", state="broken", value=3, bound=0, reason=broken.text
    )
    assert checks.accounting([None]).state == "not_applicable"


# ---------------------------------------------------------------------------- rules 2 to 8


def test_rule_2_is_about_open_loops() -> None:
    on_time = np.array([(0, 2 * MS, 9 * MS, 1, 0, Status.OK)], dtype=ROW_DTYPE).view(Rows)
    early = np.array([(3 * MS, 2 * MS, 9 * MS, 1, 0, Status.OK)], dtype=ROW_DTYPE).view(Rows)
    rate = LoadPoint(mode="open", rate_per_s=9.0, arrivals="poisson", outstanding=64)
    assert checks.intended_time(LoadPoint(concurrency=1), on_time).state == "not_applicable"
    assert checks.intended_time(rate, on_time) == Check(rule=2, name="intended_time", state="held", value=2.0)
    assert checks.intended_time(rate, early).state == "broken"


@pytest.mark.parametrize(
    ("experiment", "single_point", "state"),
    [
        (EXPERIMENT, False, "held"),
        (replace(EXPERIMENT, gain=0.2), False, "held"),  # guilty by experiment is shown by experiment
        (replace(EXPERIMENT, machine_cpu_share=0.95), False, "broken"),  # no room: proves nothing
        (replace(EXPERIMENT, machine_cpu_share=0.95, pinned_apart=True), False, "held"),
        (replace(EXPERIMENT, machine_cpu_share=None), False, "broken"),
        (EXPERIMENT, True, "held"),
        (None, True, "not_applicable"),
        (None, False, "broken"),
    ],
)
def test_rule_3_wants_the_experiment(experiment: SenderExperiment | None, single_point: bool, state: str) -> None:
    assert checks.limit_by_experiment(experiment, single_point=single_point).state == state


@pytest.mark.parametrize(
    ("server", "state"),
    [
        (SERVER, "held"),
        (replace(SERVER, batch_counts={}), "broken"),
        (replace(SERVER, execution_count=102, inference_count=408), "held"),  # two executions between counters
        (replace(SERVER, execution_count=103), "broken"),
        (replace(SERVER, inference_count=409), "broken"),
        (replace(SERVER, busy_ns=10_100 * MS), "held"),  # one execution juts out
        (replace(SERVER, busy_ns=40_000 * MS), "broken"),  # each of 4 requests was charged the whole batch
    ],
)
def test_rule_4_compares_batch_stats_with_the_totals(server: ServerDelta, state: str) -> None:
    assert checks.batch_statistics([server, None], instances=1).state == state


def test_rule_4_is_not_applicable_without_statistics() -> None:
    assert checks.batch_statistics([None], instances=1).state == "not_applicable"


def test_rule_4_is_not_applicable_to_an_ensemble_whose_own_counters_add_up_its_steps() -> None:
    step = StepCount(inference_count=8, execution_count=1, success_count=8, queue_ns=0, busy_ns=1)
    ensemble = replace(SERVER, busy_ns=40_000 * MS, steps={"resize": step})
    assert checks.batch_statistics([ensemble], instances=1).state == "not_applicable"


def test_rule_5_compares_the_medians_of_both_generators() -> None:
    locust = [at_rate(r) for r in (39.0, 40.0, 90.0)]
    other = [at_rate(r, "perf_analyzer") for r in (41.0, 42.0)]
    held = checks.generators_agree(locust, other, tolerance=0.05)
    assert (held.state, held.bound, held.reason) == ("held", 0.05, "locust 40/s, perf_analyzer 41.5/s")
    assert held.value == pytest.approx(0.0375)
    assert checks.generators_agree(locust, other, tolerance=0.03).state == "broken"
    assert checks.generators_agree(locust, other[:1], tolerance=0.05).state == "broken"
    missing = checks.generators_agree(locust, [], tolerance=0.05, not_run="perf_analyzer does not run here")
    assert (missing.state, missing.reason) == ("not_applicable", "perf_analyzer does not run here")


def test_the_cross_check_is_the_other_generators_median() -> None:
    other = [at_rate(r, "perf_analyzer") for r in (41.0, 42.0)]
    assert checks.cross_check([WINDOW], other, 0.03) == CrossCheck(
        generator="perf_analyzer", items_per_s=41.5, agrees=False
    )
    assert checks.cross_check([WINDOW], [], 0.03) is None


def test_rule_6_puts_the_engine_alone_beside_the_served_rate() -> None:
    held = checks.in_process_ceiling(0.8, 50.0)
    assert (held.state, held.value, held.bound) == ("held", 0.8, 1.05)
    assert checks.in_process_ceiling(1.04, 50.0).state == "held"
    assert checks.in_process_ceiling(1.06, 50.0).state == "broken"
    assert checks.in_process_ceiling(None, None).state == "broken"
    assert checks.in_process_ceiling(None, None, not_run="a known server has no engine").state == "not_applicable"


def test_rule_7_wants_every_response_well_formed_and_the_sample_equal() -> None:
    def at(
        malformed: int = 0, samples: int = 32, error: float | None = 1e-6, no_values: str = ""
    ) -> tuple[str, float | None]:
        found = checks.outputs(
            responses=900,
            malformed=malformed,
            samples=samples,
            max_relative_error=error,
            bound=1e-4,
            no_values=no_values,
        )
        return found.state, found.value

    assert at() == ("held", 1e-6)
    assert at(error=2e-4) == ("broken", 2e-4)
    assert at(error=float("nan"))[0] == "broken"
    assert at(malformed=1) == ("broken", 1)
    assert at(samples=0, error=None) == ("broken", None)
    assert at(samples=0, error=None, no_values="not our engine") == ("not_applicable", None)
    assert at(malformed=1, samples=0, error=None, no_values="not our engine") == ("broken", 1)


def calibration(*measured: float, machine: str = "here", locust: str = "2.47") -> Calibration:
    rows = [
        CalibrationRow(
            server=f"sleep {n}", quantity="capacity", generator="locust", truth=100.0, measured=value, bound=0.01
        )
        for n, value in enumerate(measured)
    ]
    where = Environment(machine={"cpu": machine}, software={"locust": locust, "triton": "2.51.0"})
    return Calibration(made_utc="2026-01-02T03:04:05+00:00", environment=where, rows=tuple(rows))


HERE = Environment(machine={"cpu": "here"}, software={"locust": "2.47", "server": "triton 2.60.0", "model": "0a1b"})


def rule_8(made: Calibration | None, point: LoadPoint = WINDOW.point) -> Check:
    return checks.calibrated(made, HERE, point)


def test_rule_8_is_what_the_calibration_of_this_machine_says() -> None:
    assert rule_8(None).state == "not_applicable"
    assert rule_8(calibration(100.0, machine="there")).state == "not_applicable"
    held = rule_8(calibration(100.5, 99.2))
    assert held.state == "held" and held.value == pytest.approx(0.008)
    wrong = rule_8(calibration(100.5, 98.0))
    assert wrong.state == "broken" and "locust is wrong about sleep 1" in wrong.reason
    assert rule_8(calibration()).state == "broken"


def test_rule_8_says_nothing_by_a_calibration_with_other_software() -> None:
    found = rule_8(calibration(100.0, locust="2.46"))
    assert found.state == "not_applicable"
    assert found.reason == "calibrated with locust 2.46, and this is 2.47: run `brim calibrate` again"


@pytest.mark.parametrize(
    ("changed", "way"),
    [
        ({"protocol": "grpc", "sender": "grpc_aio"}, "grpc, wire, grpc_aio"),
        ({"transport": "shared_memory"}, "http, shared memory, locust_http"),
        ({"sender": "tritonclient_http"}, "http, wire, tritonclient_http"),
    ],
)
def test_rule_8_says_nothing_of_what_calibration_does_not_send_with(changed: dict[str, str], way: str) -> None:
    point = replace(WINDOW.point, **changed)  # type: ignore[arg-type]  # the fields of a LoadPoint
    for made in (None, calibration(100.0)):
        found = rule_8(made, point)
        assert found.state == "not_applicable" and found.reason.endswith(way)
