"""The arithmetic of the benchmark of the truth, on rows, shares and summaries whose answers are known."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import numpy as np
import pytest

from benchmarks.served import Served
from benchmarks.slo_coverage import Searched, Studied, table
from benchmarks.truth import (
    bare_sender,
    capacity,
    coverage,
    ladder,
    loadgen,
    loads,
    network,
    open_loop,
    simulator,
    slo_search,
    slo_truth,
    stall,
)
from benchmarks.truth.__main__ import PARTS
from benchmarks.truth.journal import Book
from benchmarks.truth.loads import Frozen
from benchmarks.truth.slo_truth import Crossing, Point
from brim import disk, layout
from brim.errors import Lost
from brim.records import Overheads, Slo, SloRate, Status
from judging.open_truth import Latencies
from judging.rows import ROW_DTYPE, Rows
from judging.slo_model import Model
from judging.slo_observed import Observed
from judging.truth import Log
from loadtest.driver import LoadSpec
from loadtest.loadgen import Summary
from queueing.batcher import Batcher, Service

MS = 1_000_000
START_NS = 5_000_000_000


def rows_of(due_ms: Sequence[float], lag_ms: Sequence[float], taken_ms: Sequence[float]) -> Rows:
    """Requests that were sent `lag_ms` late and answered `taken_ms` after that."""
    rows = np.zeros(len(due_ms), ROW_DTYPE).view(Rows)
    rows["intended_ns"] = START_NS + np.array(due_ms) * MS
    rows["sent_ns"] = rows["intended_ns"] + np.array(lag_ms) * MS
    rows["done_ns"] = rows["sent_ns"] + np.array(taken_ms) * MS
    rows["items"], rows["status"] = 1, Status.OK
    return rows


def model(instances: int) -> Model:
    """20 ms a batch of up to 8, an instance held for 0.4 ms and 0.05 ms an item more, each answer 0.6 ms later."""
    batcher = Batcher(8, instances)
    overheads = Overheads(occupancy_ms=0.4, occupancy_per_item_ms=0.05, additive_ms=0.6)
    return Model(
        batcher=batcher, service=Service.of(batcher, lambda _: 0.02), overheads=overheads, noise=np.ones(1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("in_flight", "latency_ms"),
    [
        (1, 20 + 0.45 + 0.6),
        (2, 2 * 20.45),
        (8, 2 * (20.4 + 4 * 0.05)),
        (16, 2 * 20.8),
        (32, 4 * 20.8),
    ],
)
def test_one_instance_is_expected_to_do_what_alternating_batches_do(in_flight: int, latency_ms: float) -> None:
    rung = ladder.expected(model(1), in_flight)
    assert 1e3 * rung.latency_s == pytest.approx(latency_ms)
    assert rung.items_per_s == pytest.approx(in_flight / latency_ms * 1e3)


def test_two_instances_are_expected_to_do_what_the_simulator_does() -> None:
    full = ladder.expected(model(2), 64)
    assert full.items_per_s == pytest.approx(2 * 8 / 20.8 * 1e3, rel=1e-3)
    alone = ladder.expected(model(2), 1)
    assert 1e3 * alone.latency_s == pytest.approx(21.05)
    apart = ladder.expected(model(2), 2)  # each has an instance of its own
    assert 1e3 * apart.latency_s == pytest.approx(21.05)


def test_the_rate_error_is_by_how_much_the_simulated_rate_must_be_scaled() -> None:
    def queue(factor: float) -> float:
        return 10 / (1 - 0.9 * factor)  # M/M/1 at 90% load

    assert open_loop.rate_error(queue(1.013), queue) == pytest.approx(0.013, abs=1e-4)
    assert open_loop.rate_error(queue(0.96), queue) == pytest.approx(-0.04, abs=1e-4)
    assert open_loop.rate_error(queue(0.90), queue) is None
    assert open_loop.rate_error(queue(1.08), queue) is None


def test_between_two_freezes_a_batch_costs_their_mean() -> None:
    later = Overheads(occupancy_ms=0.7, occupancy_per_item_ms=0.06, additive_ms=0.1)
    sooner = Overheads(occupancy_ms=0.4, occupancy_per_item_ms=0.05, additive_ms=0.6)
    before = Frozen(batcher=Batcher(8), overheads=sooner, capacity=380.0, start_ns=0, end_ns=1)
    between = before.until(replace(before, overheads=later, capacity=1.0))
    assert between.overheads.occupancy_ms == pytest.approx(0.55)
    assert between.overheads.occupancy_per_item_ms == pytest.approx(0.055)
    assert between.overheads.additive_ms == pytest.approx(0.35)
    assert between.capacity == 380.0


def frozen_by(monkeypatch: pytest.MonkeyPatch, due_ms: Sequence[float], status: Status = Status.OK) -> Frozen:
    """Full batches of 20 ms for 8 s; then requests due in ms from the end of these, 0.5 ms between two that queue."""
    full = [(START_NS + n * 20 * MS, START_NS + (n + 1) * 20 * MS, 8) for n in range(400)]
    began_ms: list[float] = []
    for due in due_ms:
        began_ms.append(max(due, began_ms[-1] + 20.5) if began_ms else due)
    busy_ms = 9000.0 + np.array(due_ms)
    busy_rows = rows_of(busy_ms.tolist(), [0] * len(due_ms), (20 + np.array(began_ms) - np.array(due_ms)).tolist())
    busy_rows["status"][-1] = status
    began_ns = [START_NS + round((9000 + at) * MS) for at in began_ms]
    log = Log.of({"0": [*full, *((at, at + 20 * MS, 1) for at in began_ns)]})
    each_ms = np.repeat(np.arange(400) * 20.0, 8).tolist()
    closed = observed(rows_of(each_ms, [0] * 3200, [20] * 3200))
    monkeypatch.setattr(loads, "closed", lambda *_, **__: closed)
    monkeypatch.setattr(loads, "poisson_load", lambda *_, **__: observed(busy_rows))
    monkeypatch.setattr(loads, "log_of", lambda _: log)
    return loads.freeze_open(ON, seconds=8.0, seed=1)


#: One instance and batches of up to 8, of which only the description is asked.
ON = cast(Served, SimpleNamespace(variant=slo_truth.server(), target=SimpleNamespace(full=16), logs=Path("logs")))


def observed(rows: Rows) -> Observed:
    """A load of its own."""
    return Observed(load=0, start_ns=int(rows["sent_ns"].min()), end_ns=int(rows["sent_ns"].max()), rows=rows)


def test_what_a_batch_costs_is_told_by_the_requests_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs_ms = [at + second for at in range(0, 4000, 100) for second in (0, 5)]
    found = frozen_by(monkeypatch, pairs_ms)
    assert found.capacity == pytest.approx(400.0)
    assert found.overheads.occupancy_ms == pytest.approx(0.5)
    with pytest.raises(Lost, match="of 80 requests at 85% of the capacity one did not end well, or none waited"):
        frozen_by(monkeypatch, pairs_ms, Status.FAILED)
    with pytest.raises(Lost, match="or none waited behind a batch; .* measure again"):
        frozen_by(monkeypatch, [100.0 * n for n in range(80)])


def test_closed_loads_whose_batches_the_log_does_not_have_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([20.0 * n for n in range(400)], [0] * 400, [20] * 400)
    monkeypatch.setattr(loads, "closed", lambda *_, **__: observed(rows))
    monkeypatch.setattr(loads, "log_of", lambda _: Log.of({}))
    with pytest.raises(Lost, match=r"no batch follows another in the log of a closed load of 8 s.* longer loads"):
        loads.freeze(ON, seconds=8.0)


def test_a_mean_is_held_in_milliseconds_and_a_rate_in_percent() -> None:
    simulated = Latencies(mean=40.0, p99=90.0)
    assert open_loop.mean_line("", Latencies(mean=40.29, p99=0), simulated).held
    assert not open_loop.mean_line("", Latencies(mean=39.69, p99=0), simulated).held
    assert open_loop.rate_line("", -0.0099).held
    assert not open_loop.rate_line("", 0.0101).held
    assert not open_loop.rate_line("", None).held


def test_the_lag_is_held_by_the_median_of_the_loads() -> None:
    lags = [(0.1, 0.2), (0.28, 0.2), (5.0, 0.2)]
    assert open_loop.lag_line(lags).held  # 1.4 times
    assert not open_loop.lag_line([*lags[1:], (0.32, 0.2)]).held
    assert open_loop.lag_p99_ms(rows_of([0] * 200, [1] * 197 + [7, 8, 9], [20] * 200)) == 7


def test_the_crossing_of_a_straight_line_is_found_exactly() -> None:
    def share(rate: float) -> float:
        return 0.01 * (rate / 350) ** 45

    points = [Point(rate=rate, share=share(rate), error=0.3) for rate in (338.0, 347.0, 361.0)]
    found = slo_truth.crossing(points)
    assert found is not None
    assert found.rate == pytest.approx(350)
    assert found.kappa == pytest.approx(45)
    assert found.error == pytest.approx(0.3 / math.sqrt(3) / 45)
    assert slo_truth.points_of(slo_truth.kept(points)) == points
    assert slo_truth.crossing([Point(rate=r, share=1 / r, error=0.1) for r in (1.0, 2.0)]) is None


def open_load(over: list[bool], unsent: int = 0) -> Observed:
    """Requests 10 ms apart, each in time or 101 ms late; the last ones never left."""
    offsets_ns = np.arange(len(over) + unsent, dtype=np.int64) * 10 * MS
    rows = rows_of((offsets_ns[: len(over)] / MS).tolist(), [0] * len(over), [101 if late else 99 for late in over])
    end_ns = START_NS + int(offsets_ns[-1])
    return Observed(load=0, start_ns=START_NS, end_ns=end_ns, rows=rows, offsets_ns=offsets_ns)


def test_the_share_counts_behind_the_first_seconds_and_what_was_never_sent_is_late() -> None:
    late = [True] * 500 + [number % 50 == 0 for number in range(980)]  # the first 5 s are all late
    point = slo_truth.point_of(open_load(late, unsent=20))
    assert point.share == pytest.approx((20 + 20) / 1000)
    assert point.rate == pytest.approx(100, rel=0.01)


def test_a_load_that_tells_no_schedule_counts_from_its_sending() -> None:
    load = open_load([number % 50 == 0 for number in range(1500)])
    load = Observed(load=0, start_ns=load.start_ns, end_ns=load.end_ns, rows=load.rows)
    assert slo_truth.point_of(load).share == pytest.approx(20 / 1000)


def test_a_load_without_a_late_request_has_half_of_one() -> None:
    assert slo_truth.point_of(open_load([False] * 1500)).share == pytest.approx(0.5 / 1000)


def answer(items_per_s: float | None) -> SloRate:
    slo = Slo(limit_ms=100.0)
    ci95 = None if items_per_s is None else (items_per_s - 3, items_per_s + 3)
    return SloRate(slo=slo, items_per_s=items_per_s, ci95=ci95, given="model", verdict="resolved")


def test_a_search_is_held_by_its_answer_and_its_seconds() -> None:
    assert [line.held for line in slo_search.search_lines(1, answer(356.9), 60.0, 350.0)] == [True, True, None]
    assert [line.held for line in slo_search.search_lines(1, answer(357.1), 121.0, 350.0)] == [False, False, None]
    assert [line.held for line in slo_search.search_lines(1, answer(None), 60.0, 350.0)] == [False, True, None]


def test_the_peers_answer_is_the_largest_rate_within_the_limit() -> None:
    said = """Inferences/Second vs. Client p99 Batch Latency
Request Rate: 340, throughput: 339.8 infer/sec, latency 71235 usec
Request Rate: 350.5, throughput: 350.1 infer/sec, latency 100000 usec
Request Rate: 360, throughput: 359.9 infer/sec, latency 100001 usec
"""
    line = slo_search.peer_line(said, 177.4, 345.0)
    assert line.measured == "350.5/s (+1.59%) after 177 s"
    assert "no answer" in slo_search.peer_line("Failed to obtain stable measurement", 30.0, 345.0).measured


def test_searches_that_were_finished_stand_though_a_later_one_or_the_peer_does_not_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []

    def loadtest(on: object, *asked: str) -> Path:
        made.append(tmp_path / f"run-{len(made)}")
        if len(made) == 2:
            raise Lost("`brim loadtest` did not end within 900 s")
        if len(made) != 3:  # whose server was lost before it had an answer
            disk.save(made[-1] / "slo.json", answer(350.0))
        return made[-1]

    monkeypatch.setattr(slo_search, "brim_loadtest", loadtest)
    monkeypatch.setattr(slo_search, "fresh", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(slo_search, "truth_of", lambda figures, book: 350.0)
    monkeypatch.setattr("benchmarks.search.perf_analyzer", lambda on, *told: ["perf_analyzer"])
    monkeypatch.setattr(slo_search, "exclusive", contextlib.nullcontext)
    monkeypatch.setattr(Book, "earlier", lambda self, part: {})
    monkeypatch.setattr(subprocess, "run", timed_out)
    book = Book("slo-search", tmp_path, share=1.0)
    slo_search.run(book)
    monkeypatch.undo()
    lines = {line.what: line for line in book.close().lines}
    held = [lines[f"search {number}: rate at the SLO"].held for number in (1, 2, 3, 4, 5)]
    assert held == [True, False, False, True, True]
    assert "900 s" in lines["search 2: rate at the SLO"].measured
    assert "no answer" in lines["perf_analyzer --binary-search"].measured


def timed_out(command: Sequence[str], *, timeout: float, **_: object) -> NoReturn:
    """In place of subprocess.run."""
    raise subprocess.TimeoutExpired(command, timeout)


def test_brim_and_a_bare_sender_that_do_not_end_fail_their_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on = SimpleNamespace(folder=tmp_path, variant=SimpleNamespace(name="sleep"))
    monkeypatch.setattr(subprocess, "run", timed_out)
    with pytest.raises(Lost, match=r"`brim loadtest --slo-only` did not end within 900 s"):
        loads.brim_loadtest(cast(Served, on), "--slo-only")
    with pytest.raises(subprocess.SubprocessError, match="bare_sender.* timed out after 120"):
        bare_sender.lag_ms(cast(LoadSpec, on), tmp_path / "spec.json", limit_s=120.0)


def test_a_network_must_be_on_the_right_side_of_its_slo() -> None:
    slo = Slo(limit_ms=100.0)
    few, many = open_load([False] * 995 + [True] * 5), open_load([False] * 980 + [True] * 20)
    assert network.share_line("", few, slo, meets=True).held
    assert not network.share_line("", few, slo, meets=False).held
    assert not network.share_line("", many, slo, meets=True).held
    assert network.share_line("", many, slo, meets=False).held
    assert not network.share_line("", open_load([False] * 980, unsent=20), slo, meets=True).held
    assert (
        network.fast_enough(200.0).held and not network.fast_enough(199.0).held and not network.fast_enough(None).held
    )


def test_a_search_without_a_rate_is_told_and_made_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unresolved = replace(answer(None), verdict="not_resolvable", reason="SLO rate not resolvable in 180 s")
    left = [unresolved, answer(350.0), unresolved, unresolved, answer(350.0)]

    def loadtest(on: object, *asked: str) -> Path:
        folder = tmp_path / f"run-{len(left)}"
        disk.save(folder / "slo.json", left.pop(0))
        return folder

    monkeypatch.setattr(network, "brim_loadtest", loadtest)
    book = Book("network", tmp_path, share=1.0)
    assert network._search(book, ON).items_per_s == 350.0
    with pytest.raises(Lost, match="gave no rate 2 times"):
        network._search(book, ON)
    assert len(left) == 1
    assert [line.measured for line in book.close().lines] == ["not_resolvable: SLO rate not resolvable in 180 s"] * 3


def test_a_stall_shows_in_one_loop_and_not_in_the_other() -> None:
    shown = np.concatenate([np.full(3900, 11.0), np.linspace(10, 1000, 100)])  # 1 s of 40 s
    hidden = np.concatenate([np.full(7000, 20.0), [1010.0, 1010.0]])
    assert stall.open_line(shown).held and not stall.open_line(hidden).held
    assert stall.closed_line(hidden).held and not stall.closed_line(shown).held
    assert not stall.closed_line(np.full(7000, 20.0)).held  # the server never froze


def test_the_page_is_read_as_a_reader_reads_it() -> None:
    page = "<p>A closed\nloop of <b>2</b> requests sends nothing while&#32;it waits: its p99.5 would not show it</p>"
    assert stall.page_line(page).held
    assert not stall.page_line(page.replace("nothing", "something")).held


def summary(**changed: object) -> Summary:
    usual: dict[str, object] = {
        "scenario": "Offline", "valid": True, "samples_per_s": 380.0, "mean_ms": 1.0, "p99_ms": 2.0, "unmet": (),
    }  # fmt: skip
    return Summary(**{**usual, **changed})  # type: ignore[arg-type]  # a record's own fields


def test_loadgen_is_held_by_its_own_verdict_and_by_ours() -> None:
    assert loadgen.valid("", summary()).held
    missed = loadgen.valid("", summary(valid=False, unmet=("Early Stopping",)))
    assert (missed.held, missed.measured) == (False, "380/s, INVALID: Early Stopping")
    assert loadgen.offline_line("", summary(), 390.0).held
    assert not loadgen.offline_line("", summary(), 410.0).held


def test_the_oracles_hold_only_if_some_ran_and_none_failed() -> None:
    assert simulator.oracles_line(0, "....\n===== 41 passed in 20.11s =====\n").held
    assert not simulator.oracles_line(1, "1 failed, 40 passed in 20.11s").held
    assert not simulator.oracles_line(5, "no tests ran in 0.01s").held


def test_what_is_promised_is_what_was_asked() -> None:
    """The bounds, once more, by hand."""
    assert (capacity.TOLERANCE, ladder.TOLERANCE, slo_search.TOLERANCE, slo_search.MOST_S) == (0.01, 0.02, 0.02, 120)
    assert (open_loop.RATE_ERROR, open_loop.LAG_RATIO, slo_truth.LOAD_S, slo_search.SEARCHES) == (0.01, 1.5, 300, 5)
    assert ladder.IN_FLIGHT == (1, 2, 4, 8, 16, 32)
    assert isinstance(
        slo_truth.crossing([Point(rate=1, share=0.01, error=0), Point(rate=2, share=0.1, error=0)]), Crossing
    )


def test_the_minutes_that_are_told_are_those_that_are_sent_and_keep_to_their_bounds() -> None:
    """20 minutes a part and 100 in all, a search of a network that is made again included."""
    told: dict[str, int] = {}
    text = (layout.CHECKOUT / "benchmarks" / "README.md").read_text("utf-8")
    for line in text.partition("## The parts of `truth/`")[2].splitlines():
        cells = line.strip("|").split("|")
        if names := re.findall(r"`([\w-]+)`", cells[0]) if len(cells) == 4 else []:
            minutes = [int(number) for number in re.findall(r"\d+", cells[3])]
            told.update(zip(names, minutes * len(names) if "each" in cells[3] else minutes, strict=True))
    assert told.keys() == PARTS.keys()
    again = (network.SEARCHES - 1) * network.SEARCH_S / 60
    assert sum(told.values()) + again <= 100
    assert f"{sum(told.values())} in all" in text
    for part, sent_s in {
        "slo-truth": len(slo_truth.AROUND) * slo_truth.LOAD_S,
        "slo-truth-perf_analyzer": len(slo_truth.AROUND) * slo_truth.LOAD_S,
        "network": network.SEARCH_S + len(network.AROUND) * network.SMALL_S,
        "resnet-below": network.SEARCH_S + network.RESNET_S,
        "resnet-above": network.RESNET_S,
    }.items():
        assert 0 <= told[part] - sent_s / 60 <= 1
        assert told[part] + again <= 20


def searched(off: float | None, half_width: float | None) -> Searched:
    return Searched(verdict="resolved", given="model", off=off, half_width=half_width, seconds=60.0)


def test_an_interval_covers_if_the_truth_lies_in_it_and_one_that_is_not_there_does_not() -> None:
    def studied(*searches: Searched) -> Studied:
        slo = Slo(limit_ms=100.0)
        return Studied(name="sleeping", slo=slo, judged=True, truth=350.0, searches=searches)

    good, bad = searched(0.004, 0.005), searched(-0.006, 0.005)
    none = searched(None, None)
    held, _ = coverage.lines(studied(*[good] * 92, *[bad] * 5, *[none] * 3))
    assert (held.held, held.measured) == (True, "92.0%, 3 without an interval")
    assert not coverage.lines(studied(*[good] * 91, *[bad] * 9))[0].held
    assert not coverage.lines(studied(*[good] * 91, *[none] * 9))[0].held
    assert [line.held for line in coverage.lines(studied(none))] == [False, None]
    assert not studied(none, none).held and "0.0%" in table([studied(none, none)])
