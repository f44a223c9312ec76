"""From gathered evidence to answer, exit code and last line: the experiment played against simulated servers."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from brim import disk, layout
from brim.cli import Outcome
from brim.records import Environment, Load, LoadPoint, Run, Saturation, Target, Tensor, Verdict
from experiments.measure.alone import Kept, Values
from experiments.measure.answer import answer
from experiments.measure.cli import EXIT_CODES, ending, finish
from experiments.measure.experiment import Done, Plan, Step
from experiments.measure.gathered import Alone, Evidence, MeasuredLoad
from experiments.measure.steps import next_step
from judging import windows as judged
from judging.steady import steady
from tests.unit.simulated import Simulated, closed_loop, constant

MS = 1_000_000
X, Y = Tensor(name="x", dtype="FP32", shape=(2,)), Tensor(name="y", dtype="FP32", shape=(2,))
TARGET = Target(
    url="http://127.0.0.1:8000", model="m__b4", version="", inputs=(X,), outputs=(Y,), max_batch=4, instances=1,
    server_name="triton", server_version="2.51.0",
)  # fmt: skip
RUN = Run(
    id="20260101T000000Z-m__b4-abcdef", batch_id="20260101T000000Z-abcdef", command="brim loadtest", target=TARGET,
    environment=Environment(machine={"gpu": "none", "cores": "2"}, software={}), started_utc="2026-01-01T00:00:00Z",
    pid=1, process_started_s=0.0, unix_ns=0, monotonic_ns=0, status="closed",
)  # fmt: skip
#: Batches of 4 in 100 ms: 40 items a second, of which 8 in flight get everything.
CAPACITY = 40.0

Serve = Callable[[Step], Simulated]
Alter = Callable[[MeasuredLoad], MeasuredLoad]


def plan(concurrency: int | None = None, *, engine: bool = False, most: int = 64, starts: int = 1) -> Plan:
    return Plan(
        full=8, least=4, most=most, concurrency=concurrency, senders=1, max_senders=2, rounds=2, cross_check=True,
        engine=engine, agree=0.05, starts=starts,
    )  # fmt: skip


def busy_server(step: Step) -> Simulated:
    return closed_loop(concurrency=step.concurrency, max_batch=4, service=constant(100 * MS), seconds=12)


def server_of_two_instances(step: Step) -> Simulated:
    """More of the server than was told: 8 in flight leave half of it idle, 16 do not."""
    return closed_loop(
        concurrency=step.concurrency, max_batch=4, service=constant(100 * MS), seconds=12, instances=4
    )  # fmt: skip


def slow_sender(step: Step) -> Simulated:
    """Each sender keeps no more than four of its requests in flight; two batches could be under way."""
    return closed_loop(
        concurrency=min(step.concurrency, 4 * step.senders), max_batch=4, service=constant(100 * MS), seconds=12,
        instances=2,
    )  # fmt: skip


def slowing_server(step: Step) -> Simulated:
    return closed_loop(
        concurrency=step.concurrency, max_batch=4, seconds=12, service=lambda at_s: round((100 + 10 * at_s) * MS)
    )


def load_of(step: Step, simulated: Simulated, index: int) -> MeasuredLoad:
    """What the shell makes of a load: its line, rows, reads and windows."""
    rows, reads = simulated.rows, simulated.reads
    point = LoadPoint(concurrency=step.concurrency, senders=step.senders, payload="random:0")
    generator: judged.Generator = "perf_analyzer" if step.purpose == "cross_check" else "locust"
    start_ns, until_ns = simulated.start_ns, simulated.until_ns
    period_ns = judged.batch_period_ns(reads, rows, from_ns=start_ns, until_ns=until_ns)
    done_ns, items = judged.answered(rows)
    state = steady(done_ns, items, start_ns=start_ns, end_ns=until_ns, period_ns=period_ns)
    windows = judged.cut_windows(
        rows, reads, generator=generator, point=point, steady=state, until_ns=until_ns, period_ns=period_ns,
        min_seconds=3, min_batches=20, max_seconds=60,
    )  # fmt: skip
    assert step.purpose != "alone"
    load = Load(
        index=index, generator=generator, purpose=step.purpose, point=point, workers=(index,), start_ns=start_ns,
        end_ns=int(rows["done_ns"].max()), sent=len(rows), ok=len(rows), rejected=0, timed_out=0, failed=0,
        cancelled=0, items_ok=len(rows), client_cpu_s=1.0, ended="stopped",
    )  # fmt: skip
    return MeasuredLoad(
        load=load, windows=tuple(windows), rows=rows, period_ns=period_ns, reads=reads,
        kept=Kept(folder=Path("none"), samples=()),
    )  # fmt: skip


def gathered(
    asked: Plan, serve: Serve, alter: Alter = lambda load: load, *, alone_per_s: float = 42.0, most: int = 50
) -> Evidence:
    """The whole experiment, at most `most` steps of it, as `brim loadtest` plays it."""
    done: list[Done] = []
    loads: list[MeasuredLoad] = []
    rates: list[float] = []
    while len(done) < most and (step := next_step(asked, done)) is not None:
        if step.purpose == "alone":
            rates.append(alone_per_s)
            done.append(Done(step=step, rates=(alone_per_s,)))
            continue
        load = alter(load_of(step, serve(step), len(loads)))
        load = replace(load, load=replace(load.load, server_start=step.start))
        loads.append(load)
        done.append(
            Done(
                step=step,
                rates=load.rates,
                busy_s_per_item=load.busy_s_per_item,
                effective_batch=load.effective_batch,
                busy_share=load.busy_share(TARGET),
            )
        )
    values = Values(compared=32, max_relative_error=1e-6) if asked.engine else None
    reason = "" if asked.engine else "a known server has no engine"
    return Evidence(
        run=RUN, target=TARGET, plan=asked, done=tuple(done), loads=tuple(loads),
        alone=Alone(rates=tuple(rates), values=values, reason=reason), items_per_request=1, payload="random:0",
        no_cross_check=None,
    )  # fmt: skip


def told(evidence: Evidence) -> Saturation:
    return answer(evidence, seconds_spent=1.0)


def rejecting(load: MeasuredLoad) -> MeasuredLoad:
    """For every request that was answered another was refused."""
    refused = load.load.ok
    return replace(load, load=replace(load.load, sent=load.load.sent + refused, rejected=refused))


def lost(load: MeasuredLoad) -> MeasuredLoad:
    return replace(load, load=replace(load.load, ended="server_lost"), windows=())


def saturated() -> Evidence:
    return gathered(plan(engine=True), busy_server)


#: Evidence for every verdict there is.
EVIDENCE: dict[Verdict, Callable[[], Evidence]] = {
    Verdict.SATURATED: saturated,
    Verdict.POINT: lambda: gathered(plan(3), busy_server),
    Verdict.STILL_RISING: lambda: gathered(plan(most=16), server_of_two_instances),
    Verdict.CLIENT_LIMITED: lambda: gathered(plan(), slow_sender),
    Verdict.UNSTABLE: lambda: gathered(plan(), slowing_server),
    Verdict.FAILING: lambda: gathered(plan(), busy_server, rejecting),
    Verdict.SERVER_LOST: lambda: replace(gathered(plan(), busy_server, lost), lost="process 7 has ended"),
    Verdict.ABORTED: lambda: replace(gathered(plan(), busy_server, most=2), interrupted=True),
}


@pytest.mark.parametrize("verdict", Verdict)
def test_evidence_of_each_kind_gets_its_verdict_and_exit_code(verdict: Verdict) -> None:
    result = told(EVIDENCE[verdict]())
    code = {"saturated": 0, "point": 0, "server_lost": 5, "aborted": 130}.get(verdict, 4)
    assert result.verdict == verdict
    assert ending(result) == (code, verdict)
    assert EXIT_CODES[verdict] == code


def test_a_saturated_server_gets_its_capacity_and_every_rule_that_can_hold_holds() -> None:
    result = told(EVIDENCE[Verdict.SATURATED]())
    assert result.items_per_s == pytest.approx(CAPACITY, rel=1e-3)
    assert result.ci95 is not None and result.ci95[0] <= CAPACITY <= result.ci95[1] + 1e-9
    assert (result.limited_by, result.at.concurrency) == ("engine", 8)
    assert result.effective_batch == pytest.approx(4)
    assert result.latency_ms is not None and result.latency_ms.p50 == pytest.approx(200, rel=1e-3)
    assert result.in_process_items_per_s == 42.0
    assert result.serving_efficiency == pytest.approx(CAPACITY / 42, rel=1e-3)
    assert result.cross_check is not None and result.cross_check.agrees
    states = {check.rule: check.state for check in result.checks}
    assert states == {
        1: "held", 2: "not_applicable", 3: "held", 4: "held", 5: "held", 6: "held", 7: "held", 8: "not_applicable",
    }  # fmt: skip


def test_over_three_starts_the_interval_is_students_t_over_their_means() -> None:
    """Starts that serve a batch in 100, 104 and 98 ms: 40, 38.46 and 40.82 items/s; t(2, 0.975) = 4.3027."""
    service_ms = {0: 100, 1: 104, 2: 98}

    def serve(step: Step) -> Simulated:
        return closed_loop(
            concurrency=step.concurrency, max_batch=4, service=constant(service_ms[step.start] * MS), seconds=12
        )

    result = told(gathered(plan(8, starts=3), serve))
    means = [4 / (ms / 1e3) for ms in service_ms.values()]
    half = 4.302653 * statistics.stdev(means) / math.sqrt(3)
    assert (result.ci_kind, result.starts) == ("between_starts", 3)
    assert result.start_means == pytest.approx(means, rel=1e-3)
    assert result.items_per_s == pytest.approx(statistics.mean(means), rel=1e-3)
    assert result.ci95 is not None
    assert result.ci95[1] - result.ci95[0] == pytest.approx(2 * half, rel=0.02)


def test_a_start_that_gave_no_window_makes_the_figure_unstable_and_is_not_counted() -> None:
    def third_fails(load: MeasuredLoad) -> MeasuredLoad:
        return (
            replace(load, windows=()) if load.load.index == 4 else load
        )  # figure, cross-check, figure, cross-check, …

    result = told(gathered(plan(8, starts=3), busy_server, third_fails))
    assert (result.verdict, result.starts, result.ci_kind) == ("unstable", 2, "within_run")


def test_a_ladder_that_ended_below_full_batches_says_how_many_they_need() -> None:
    result = told(gathered(plan(most=6), busy_server))
    assert result.verdict == "still_rising"
    assert result.reasons[0] == "the ladder ended below full batches, which need 8 in flight"


def test_an_aborted_search_tells_of_its_last_load_and_not_of_all_rungs_together() -> None:
    result = told(replace(gathered(plan(), busy_server, most=2), interrupted=True))
    assert any("batches 4.0 of 4" in reason for reason in result.reasons)


def test_a_second_generator_whose_own_summary_does_not_fit_agrees_nowhere() -> None:
    def doubtful(load: MeasuredLoad) -> MeasuredLoad:
        doubts = ("its summary says 50/s, its trace 40/s",) if load.load.generator == "perf_analyzer" else ()
        return replace(load, load=replace(load.load, reasons=doubts))

    result = told(gathered(plan(), busy_server, doubtful))
    assert {check.rule: check.state for check in result.checks}[5] == "broken"
    assert result.cross_check is not None and not result.cross_check.agrees


def test_two_starts_are_not_enough_for_a_95_percent_interval_between_them() -> None:
    result = told(gathered(plan(8, starts=2), busy_server))
    assert (result.ci_kind, result.starts) == ("within_run", 2)


def test_every_load_is_kept_as_a_probe_with_what_it_is_worth() -> None:
    evidence = gathered(plan(), busy_server)
    result = told(evidence)
    assert [p.load for p in result.probes] == [load.load.index for load in evidence.loads]
    low, full = result.probes[0], result.probes[1]
    assert (low.at.concurrency, full.at.concurrency) == (4, 8)
    assert low.queue_ms == pytest.approx(0, abs=1), "the four arrive together and are taken at once"
    assert full.items_per_s == pytest.approx(CAPACITY, rel=1e-3)
    assert full.batch_counts.keys() == {"4"}
    assert full.server_ms == pytest.approx(200, rel=0.02), "queue and service"
    assert full.queue_ms == pytest.approx(100, rel=0.02)
    assert {p.verdict for p in result.probes} == {"steady"}
    failing = told(gathered(plan(), busy_server, rejecting))
    assert {p.verdict for p in failing.probes} == {"failing"}


def test_a_search_that_ends_without_a_figure_names_the_load_that_ended_it() -> None:
    """And not the top of the ladder that it never climbed."""
    result = told(gathered(plan(), busy_server, lambda load: replace(rejecting(load), windows=())))
    assert {probe.purpose for probe in result.probes} == {"search"}
    assert result.items_per_s is None and result.at == result.probes[-1].at
    gone = told(EVIDENCE[Verdict.SERVER_LOST]())
    assert [(p.verdict, p.items_per_s) for p in gone.probes] == [("server_lost", None)]


def test_a_server_faster_than_its_own_engine_breaks_rule_6_whatever_the_verdict() -> None:
    result = told(gathered(plan(engine=True), busy_server, alone_per_s=30.0))
    assert result.verdict == "saturated"
    assert {check.rule: check.state for check in result.checks}[6] == "broken"


def test_an_engine_that_should_have_run_alone_and_did_not_breaks_rules_6_and_7_with_its_words() -> None:
    evidence = replace(gathered(plan(), busy_server), alone=Alone(reason="python3 does not start", failed=True))
    told_of = {check.rule: (check.state, check.reason) for check in told(evidence).checks}
    assert told_of[6] == told_of[7] == ("broken", "python3 does not start")


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (Verdict.STILL_RISING, "the last doubling of the load still gained +100.0%"),
        (Verdict.CLIENT_LIMITED, "a further sender still gained +100.0%"),
        (Verdict.UNSTABLE, "the rate reached no steady state"),
        (Verdict.FAILING, "50.0% of the requests were not ok (more than 1%)"),
        (Verdict.SERVER_LOST, "process 7 has ended"),
        (Verdict.ABORTED, "a signal ended it"),
        (Verdict.POINT, "one load point was asked for: no plateau is claimed"),
    ],
)
def test_the_first_reason_is_the_verdicts_own(verdict: Verdict, why: str) -> None:
    assert told(EVIDENCE[verdict]()).reasons[0] == why


def test_a_slow_client_is_named_as_the_limit_and_a_rising_server_is_measured_at_its_best_point() -> None:
    assert told(EVIDENCE[Verdict.CLIENT_LIMITED]()).limited_by == "client"
    assert told(EVIDENCE[Verdict.STILL_RISING]()).at.concurrency == 16


def test_a_measurement_that_ended_before_its_first_window_has_no_number() -> None:
    for verdict in (Verdict.SERVER_LOST, Verdict.ABORTED):
        result = told(EVIDENCE[verdict]())
        assert (result.items_per_s, result.ci95, result.latency_ms, result.cross_check) == (None, None, None, None)


EXITS = """
import sys, types
from pathlib import Path
from brim import cli, disk
from brim.records import Saturation
from experiments.measure.cli import ending, finish

for name in sys.argv[2:]:
    @cli.verb("one answer")
    def status(say, out):
        return finish([ending(disk.load(Saturation, Path(sys.argv[1]) / name))])
    cli.VERBS["status"] = ("one", "")
    sys.modules["one"] = types.SimpleNamespace(command=status)
    try:
        cli.main(["status"])
    except SystemExit as ended:
        print(name, ended.code, flush=True)
        print("--", file=sys.stderr, flush=True)
"""


def test_the_process_ends_with_the_verdicts_code_and_says_so_in_its_last_line(tmp_path: Path) -> None:
    for verdict, evidence in EVIDENCE.items():
        disk.save(tmp_path / verdict, told(evidence()))
    done = subprocess.run(
        [sys.executable, "-c", EXITS, str(tmp_path), *EVIDENCE], capture_output=True, text=True, cwd=layout.CHECKOUT
    )
    codes = dict(line.split() for line in done.stdout.splitlines())
    last_lines = dict(zip(codes, done.stderr.split("--\n"), strict=False))
    assert {name: int(code) for name, code in codes.items()} == EXIT_CODES
    assert last_lines == {
        "saturated": "",
        "point": "",
        "still_rising": "brim: exit 4 (still_rising)\n",
        "client_limited": "brim: exit 4 (client_limited)\n",
        "unstable": "brim: exit 4 (unstable)\n",
        "failing": "brim: exit 4 (failing)\n",
        "server_lost": "brim: exit 5 (server_lost)\n",
        "aborted": "brim: exit 130 (aborted)\n",
    }


@pytest.mark.parametrize(
    ("endings", "code", "word"),
    [
        ([(0, "saturated"), (4, "unstable"), (4, "failing")], 4, "unstable"),
        ([(4, "unstable"), (5, "server_lost"), (0, "point")], 5, "server_lost"),
        ([(3, "not_ready"), (4, "still_rising")], 3, "not_ready"),
        ([(0, "saturated"), (130, "aborted"), (6, "resources")], 130, "aborted"),
    ],
)
def test_of_several_endings_the_contracts_order_decides(endings: list[tuple[int, str]], code: int, word: str) -> None:
    with pytest.raises(Outcome) as ended:
        finish(endings)
    assert (ended.value.code, ended.value.word) == (code, word)
    assert finish([(0, "saturated"), (0, "point")]) == 0
