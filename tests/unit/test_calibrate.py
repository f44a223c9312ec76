"""What is calibrated, and what holds: against a simulated server whose log follows from its rows by arithmetic."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from click.testing import CliRunner

from brim import disk, layout
from brim.cli import Outcome
from brim.errors import Lost, NotReady, UsageError
from brim.records import CalibrationRow, LoadPoint, Overheads, Server, Status
from brim.say import Say
from experiments.calibrate import cli, held, held_open, plan, run, show
from experiments.calibrate.held import Measured, Own
from experiments.calibrate.send import Bench
from judging.rows import ROW_DTYPE, Rows
from judging.truth import Log
from loadtest import loadgen_driver
from loadtest.plan import read_plan
from queueing import arrivals
from queueing.batcher import Batcher, Service, open_loop
from tests.unit import simulated

MS = 1_000_000
SERVICE_MS = 20.0
SLEEP = plan.variant("sleep", {"service_ms": SERVICE_MS}, max_batch=8, instances=1)


def a_load(concurrency: int) -> Measured:
    """A perfect sleep server and a perfect generator: batches follow each other without a gap."""
    seen = simulated.closed_loop(
        concurrency=concurrency, max_batch=8, service=simulated.constant(round(SERVICE_MS * MS)), seconds=8.0
    )
    ends, items = np.unique(seen.rows["done_ns"], return_counts=True)
    lines = [(int(end) - round(SERVICE_MS * MS), int(end), int(n)) for end, n in zip(ends, items, strict=True)]
    return Measured(generator="locust", rows=seen.rows, reads=seen.reads, log=Log.of({"0": lines}))


def lying(measured: Measured, rows: Rows) -> Measured:
    return replace(measured, rows=rows)


def by_quantity(rows: list[CalibrationRow]) -> dict[str, CalibrationRow]:
    return {row.quantity.partition(" at ")[0]: row for row in rows}


@pytest.mark.parametrize(
    ("concurrency", "rate", "latency", "batch"),
    [
        (1, 50.0, 20.0, 1.0),
        (2, 100.0, 20.0, 2.0),
        (8, 400.0, 20.0, 8.0),
        (16, 400.0, 40.0, 8.0),
        (32, 400.0, 80.0, 8.0),
    ],
)
def test_a_perfect_generator_holds_at_every_point_of_the_ladder(
    concurrency: int, rate: float, latency: float, batch: float
) -> None:
    rows = by_quantity(held.rows_of(plan.cell(SLEEP, concurrency), a_load(concurrency)))
    name = "capacity" if concurrency >= 16 else "throughput"
    for quantity, expected, within in ((name, rate, 5e-3), ("latency", latency, 5e-3), ("batch", batch, 0.02)):
        assert rows[quantity].truth == pytest.approx(expected, rel=within)
        assert rows[quantity].measured == pytest.approx(expected, rel=within)
    assert all(row.holds for row in rows.values())


def test_a_generator_that_forgets_to_count_the_wait_of_its_own_is_found_out() -> None:
    measured = a_load(16)
    rows = measured.rows.copy()
    rows["sent_ns"] += 10 * MS  # it stamps when it got around to it
    rows["intended_ns"] += 10 * MS
    found = by_quantity(held.rows_of(plan.cell(SLEEP, 16), lying(measured, rows)))
    assert (found["capacity"].holds, found["latency"].holds) == (True, False)
    assert found["latency"].error_fraction == pytest.approx(-0.25, abs=0.01)


def test_tenths_of_a_millisecond_between_two_requests_are_not_held_against_a_client() -> None:
    measured = a_load(1)
    rows = measured.rows.copy()
    rows["sent_ns"] += round(0.5 * MS)
    rows["intended_ns"] += round(0.5 * MS)
    assert not by_quantity(held.rows_of(plan.cell(SLEEP, 1), lying(measured, rows)))["latency"].holds
    rows["sent_ns"] -= round(0.2 * MS)
    rows["intended_ns"] -= round(0.2 * MS)
    assert by_quantity(held.rows_of(plan.cell(SLEEP, 1), lying(measured, rows)))["latency"].holds


def test_a_generator_that_loses_every_fiftieth_answer_is_found_out() -> None:
    measured = a_load(16)
    rows = measured.rows[np.arange(len(measured.rows)) % 50 > 0]
    found = by_quantity(held.rows_of(plan.cell(SLEEP, 16), lying(measured, rows)))
    assert found["capacity"].error_fraction == pytest.approx(-0.02, abs=2e-3)
    assert not found["capacity"].holds


def test_a_generator_that_never_fills_a_batch_shows_no_capacity() -> None:
    cell = replace(plan.cell(SLEEP, 16), concurrency=4)
    found = by_quantity(held.rows_of(cell, a_load(4)))
    assert (found["capacity"].truth, found["capacity"].holds) == (None, False)
    assert found["capacity"].measured == pytest.approx(200.0, rel=5e-3)


def test_a_generators_own_figure_is_held_against_the_log_of_its_own_stretch() -> None:
    measured = a_load(16)
    start_ns = int(measured.rows["sent_ns"].min())
    own = Own(items_per_s=380.0, start_ns=start_ns, end_ns=start_ns + 4_000_000_000)
    row = held.rows_of(plan.cell(SLEEP, 16), replace(measured, own=own))[-1]
    assert (row.quantity, row.truth) == ("throughput by its own account, at 16 in flight, items/s", 400.0)
    assert row.error_fraction == pytest.approx(-0.05) and not row.holds


def test_what_was_not_measured_does_not_hold() -> None:
    assert not held.all_hold([])
    assert not held.all_hold(held.nothing(plan.cell(SLEEP, 16), "perf_analyzer"))
    empty = replace(a_load(1), rows=a_load(1).rows[:0])
    assert not held.all_hold(held.rows_of(plan.cell(SLEEP, 1), empty))


# ---------------------------------------------------------------------------- the plan


def points(cells: list[plan.Cell]) -> list[int]:
    return [cell.concurrency for cell in cells]


def test_the_ladder_doubles_up_to_two_full_batches_an_instance() -> None:
    assert points(plan.ladder(SLEEP)) == [1, 2, 4, 8, 16]
    six = plan.variant("sleep", {}, max_batch=3, instances=2)
    assert points(plan.ladder(six)) == [1, 2, 4, 8, 12]
    assert [cell.quantities[0] for cell in plan.ladder(six)] == ["throughput"] * 4 + ["capacity"]


def test_no_point_lies_beyond_a_queue_that_rejects() -> None:
    short = plan.variant("reject", {"queue": 10.0}, max_batch=8, instances=1)
    assert points(plan.ladder(short)) == [1, 2, 4, 8]
    with pytest.raises(UsageError, match="queue of reject holds 10"):
        plan.cell(short, 16)


def test_a_server_that_answers_at_once_has_only_a_rate() -> None:
    assert plan.cell(plan.variant("null", {}, max_batch=64, instances=1), 128).quantities == ("throughput",)


def test_the_short_set_has_servers_of_every_regime_and_opens_the_loop_of_one() -> None:
    cells = plan.short_set()
    assert [plan.described(variant) for variant in plan.variants(cells)] == [
        "sleep service_ms=20 B=8 k=1", "sleep service_ms=20 B=8 k=2", "affine alpha_ms=2 B=8 k=1", "null B=64 k=1",
    ]  # fmt: skip
    assert plan.opened(cells) == [cells[0].variant]
    assert plan.opened(plan.ladder(SLEEP)) == [SLEEP]
    assert plan.opened([plan.cell(SLEEP, 1), plan.cell(SLEEP, 16)]) == [SLEEP]
    assert plan.opened(plan.ladder(SLEEP)[1:]) == plan.opened(plan.ladder(SLEEP)[:-1]) == []


# ---------------------------------------------------------------------------- open loops


#: Of a batch of the open loads.
COSTS = Overheads(occupancy_ms=0.5, occupancy_per_item_ms=0.05, additive_ms=0.3)


def an_open_load(rate: float, *, lost: bool = False) -> Measured:
    """Eight seconds of Poisson arrivals at that rate; one of them may be rejected."""
    at_s, batcher = arrivals.poisson(rate, 8.0, seed=60) / 1e9, Batcher(max_batch=8)
    seen = open_loop(at_s, batcher, Service.of(batcher, lambda _: SERVICE_MS / 1e3), COSTS)
    rows = np.zeros(at_s.size, dtype=ROW_DTYPE).view(Rows)
    rows["intended_ns"] = rows["sent_ns"] = np.rint(at_s * 1e9)
    rows["done_ns"], rows["items"] = np.rint(seen.done_s * 1e9), 1
    if lost:
        rows["status"][100] = Status.REJECTED
    held_s = (COSTS.occupancy_ms + COSTS.occupancy_per_item_ms * seen.batch_items) / 1e3
    stamps = [np.rint(at * 1e9) for at in (seen.batch_start_s, seen.batch_end_s - held_s)]
    lines = np.stack([*stamps, seen.batch_items], axis=1).astype(np.int64).tolist()
    log = Log.of({"0": [(start, end, items) for start, end, items in lines]})
    return Measured(generator="locust", rows=rows, reads=(), log=log)


def test_the_capacity_is_that_of_full_batches() -> None:
    assert held_open.capacity(SLEEP, a_load(16)) == pytest.approx(400.0)
    assert held_open.capacity(SLEEP, a_load(4)) is None
    assert held_open.capacity(SLEEP, None) is None


def test_what_a_batch_costs_in_an_open_loop_comes_from_an_open_load() -> None:
    found = held_open.frozen_open(SLEEP, an_open_load(240.0))
    assert found is not None
    assert (found.occupancy_ms, found.occupancy_per_item_ms) == pytest.approx((0.5, 0.05), abs=1e-3)
    assert found.additive_ms == pytest.approx(0.3, abs=1e-3)
    assert held_open.frozen_open(SLEEP, None) is None
    assert held_open.frozen_open(SLEEP, an_open_load(240.0, lost=True)) is None


def opened(
    monkeypatch: pytest.MonkeyPatch, folder: Path, closed: Measured, lost: Sequence[float] = ()
) -> tuple[Bench, list[float]]:
    """The open loops of SLEEP behind that closed one, and at which rates requests were sent; at these one is lost."""
    rates: list[float] = []

    def send(bench: Bench, variant: object, point: LoadPoint, generator: str, **_: object) -> Measured:
        assert point.rate_per_s is not None
        rates.append(point.rate_per_s)
        return an_open_load(point.rate_per_s, lost=point.rate_per_s in lost)

    monkeypatch.setattr(run, "send", send)
    bench = Bench(
        server=cast(Server, None), servers=folder, folder=folder, plan=read_plan(None), say=Say(quiet=True),
        closed={(SLEEP.name, "locust", 16): closed},
    )  # fmt: skip
    run._open(bench, SLEEP, "locust", 16.0)
    return bench, rates


def test_open_loops_are_held_against_what_a_batch_costs_in_one_that_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench, rates = opened(monkeypatch, tmp_path, a_load(16))
    assert rates == pytest.approx([240.0, 200.0, 300.0], rel=1e-2)
    assert [row.quantity for row in bench.rows] == [
        "mean latency at 50% of capacity, ms", "p99 latency at 50% of capacity, ms",
        "mean latency at 75% of capacity, ms", "p99 latency at 75% of capacity, ms",
    ]  # fmt: skip
    assert held.all_hold(bench.rows)
    (kept,) = tmp_path.glob("overheads-*.json")
    assert disk.load(Overheads, kept).occupancy_ms == pytest.approx(COSTS.occupancy_ms, abs=1e-3)


def test_without_what_a_batch_costs_no_open_loop_is_judged_and_none_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, rates = opened(monkeypatch, tmp_path, a_load(16), lost=[240.0])
    assert rates == [240.0]  # what a closed loop shows of it is another thing, so no more is sent
    assert "no open loop by locust is judged" in capsys.readouterr().err
    assert [(row.truth, row.measured, row.holds) for row in bench.rows] == [(None, None, False)] * 4
    assert not list(tmp_path.glob("overheads-*.json"))


def test_without_full_batches_no_open_loop_is_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, rates = opened(monkeypatch, tmp_path, a_load(4))
    assert (rates, bench.rows) == ([], [])
    assert "had no full batches" in capsys.readouterr().err


def test_an_open_loop_that_came_to_nothing_does_not_hold() -> None:
    frozen = Overheads(occupancy_ms=0.0, occupancy_per_item_ms=0.0, additive_ms=0.0)
    rows = held_open.rows_of(SLEEP, "locust", 0.5, frozen, None)
    assert [row.quantity for row in rows] == [
        "mean latency at 50% of capacity, ms",
        "p99 latency at 50% of capacity, ms",
    ]
    assert not any(row.holds for row in rows)


# ---------------------------------------------------------------------------- what rule 8 rests on


def test_only_the_whole_default_set_measured_to_its_end_is_what_rule_8_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = SimpleNamespace(version="2.51.0")
    monkeypatch.setattr(run, "exclusive", contextlib.nullcontext)
    monkeypatch.setattr(run, "build", lambda *_, **__: None)
    monkeypatch.setattr("serve.embedded.require_shared_memory", lambda served: None)
    monkeypatch.setattr("serve.embedded.for_a_while", lambda *_, **__: contextlib.nullcontext(server))
    latest, now = layout.latest_calibration(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)

    class Clock:
        """In place of datetime: a minute passes between two questions, as a calibration's folder bears its second."""

        @staticmethod
        def now(_: object) -> datetime:
            nonlocal now
            now += timedelta(minutes=1)
            return now

    monkeypatch.setattr(run, "datetime", Clock)

    def kept() -> int:
        return len(list(layout.calibrations(tmp_path).glob("*/calibration.json")))

    def calibrated(cells: list[plan.Cell], closed: Callable[..., None], opened: Callable[..., None]) -> bool:
        monkeypatch.setattr(run, "_closed", closed)
        monkeypatch.setattr(run, "_open", opened)
        with contextlib.suppress(Lost):
            run.calibrate(cells, out=tmp_path, seconds=1.0, say=Say(quiet=True), generators=["locust"])
        return latest.exists()

    def lost(*_: object) -> None:
        raise Lost("the server was lost")

    # All are kept, whether rule 8 asks them or not.
    assert not calibrated(plan.ladder(SLEEP), nothing, nothing) and kept() == 1
    assert not calibrated(plan.short_set()[1:], nothing, nothing) and kept() == 2
    assert not calibrated(plan.short_set(), nothing, lost) and kept() == 3
    assert calibrated(plan.short_set(), nothing, nothing) and kept() == 4


def nothing(*_: object) -> None:
    """Loads that give no rows."""


# ---------------------------------------------------------------------------- what is said, and the exit code


def test_the_document_has_what_follows_from_each_row() -> None:
    row = CalibrationRow(
        server="sleep", quantity="q", generator="locust", truth=200.0, measured=199.0, bound=0.01
    )  # fmt: skip
    (told,) = show.document([row])["rows"]
    assert told == {
        "server": "sleep", "quantity": "q", "generator": "locust", "truth": 200.0, "measured": 199.0, "bound": 0.01,
        "error_fraction": pytest.approx(-0.005), "holds": True,
    }  # fmt: skip


def test_a_line_of_progress_calls_the_truth_what_the_table_calls_it() -> None:
    row = CalibrationRow(
        server="s", quantity="p99 latency, ms", generator="locust", truth=40.0, measured=41.0, bound=0.05
    )  # fmt: skip
    assert show.line(row) == "p99 latency, ms: 41.00, truth 40.00 (+2.50%)"
    assert "truth" in show.table([row]).splitlines()[0]


def test_a_line_of_the_table_has_each_generator_beside_its_own_truth() -> None:
    rows = [
        CalibrationRow(server="s", quantity="q", generator="locust", truth=400.0, measured=399.0, bound=0.01),
        CalibrationRow(server="s", quantity="q", generator="perf_analyzer", truth=12345.6, measured=None, bound=0.01),
    ]
    head, line = show.table(rows).splitlines()
    assert head.split() == ["server", "quantity", "truth", "Locust", "truth", "perf_analyzer", "error", "holds"]
    assert line.split() == ["s", "q", "400.0", "399.0", "12,346", "none", "-0.25%", "none", "NO"]


def made_of(rows: list[CalibrationRow], folder: Path, verdicts: Sequence[str] = ()) -> SimpleNamespace:
    """What of a calibration is told."""
    return SimpleNamespace(rows=rows, folder=folder, verdicts=verdicts)


def test_loadgens_own_verdict_stands_under_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "sleep B=8 k=1 at 16 in flight: LoadGen Offline: 394.1 samples/s, VALID under our settings"
    found = held.rows_of(plan.cell(SLEEP, 16), a_load(16))
    monkeypatch.setattr(run, "calibrate", lambda cells, **asked: made_of(found, tmp_path, [said]))
    told = CliRunner().invoke(cli.command, ["--known", "sleep", "--out", str(tmp_path)])
    assert told.stdout.splitlines()[-2:] == [said, f"everything sent and logged: {tmp_path}"]


def test_loadgen_that_is_asked_for_and_not_installed_is_refused_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "calibrate", lambda *_, **__: pytest.fail("it was served"))
    monkeypatch.setattr(loadgen_driver, "find_spec", lambda name: None)
    told = CliRunner().invoke(cli.command, ["--known", "sleep", "--loadgen", "--out", str(tmp_path)])
    assert isinstance(told.exception, NotReady) and told.exception.exit_code == 3
    assert "`make calibrate ARGS=--loadgen` installs it" in str(told.exception)


@pytest.mark.parametrize(("lies", "exit_code"), [(False, 0), (True, 1)])
def test_it_ends_with_0_only_if_every_figure_holds(
    lies: bool, exit_code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = a_load(16)
    rows = measured.rows[::2] if lies else measured.rows
    found = held.rows_of(plan.cell(SLEEP, 16), lying(measured, rows))
    monkeypatch.setattr(run, "calibrate", lambda cells, **asked: made_of(found, tmp_path))
    told = CliRunner().invoke(cli.command, ["--known", "sleep", "--json", "--out", str(tmp_path)])
    ended = told.exception.code if isinstance(told.exception, Outcome) else told.exit_code
    assert ended == exit_code
    assert [row["holds"] for row in json.loads(told.stdout)["rows"]] == [not lies, True, True]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--service-ms", "20"], "--known"),
        (["--concurrency", "4"], "--known"),
        (["--set", "alpha_ms=2"], "--known"),
        (["--known", "slep"], "did you mean 'sleep'"),
        (["--known", "sleep", "--set", "alpha_ms=2"], "no parameter 'alpha_ms'"),
        (["--known", "affine", "--set", "alpha_ms"], "NAME=NUMBER"),
        (["--known", "sleep", "--service-ms", "-1"], "above 0"),
        (["--known", "sleep", "--concurrency", "0"], "at least 1"),
        (["--known", "sleep", "--service-ms", "10", "--set", "service_ms=20"], "service_ms is 10 already"),
        (["--known", "affine", "--set", "alpha_ms=1", "--set", "alpha_ms=2"], "alpha_ms is 1 already"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--known", "exponential", "--max-batch", "4"], "max_batch 4; it must be 1"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_served(
    words: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "calibrate", lambda *_, **__: pytest.fail("it was served"))
    told = CliRunner().invoke(cli.command, words)
    assert isinstance(told.exception, UsageError)
    assert why in str(told.exception)
