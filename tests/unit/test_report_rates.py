"""Open loops, rates at an SLO and overload in the page and its files: arithmetic on a queue made by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tests.unit.finished_runs as made
from analysis import finished, rates, report, requests
from analysis.open_loop import ObservedLoop, observe, percentiles
from brim import disk
from brim.errors import InvalidRecord
from brim.records import Load, Purpose, Slo, SloRate, Status
from judging.rows import Rows
from tests.measuring import heard_of
from tests.unit import simulated
from tests.unit.test_report_page import CANARY, RIGHT_TO_LEFT, Tags

#: With a stall of 1 s, 5 ms of service and 10 ms between arrivals, 201 requests wait 1005, 1000, … 5 ms.
STALLED_MEAN_MS = (sum(range(5, 1006, 5)) + 5 * (made.REQUESTS - 201)) / made.REQUESTS


def seen(load: Load | None = None, rows: Rows | None = None, slo: Slo | None = None, **queue: int) -> ObservedLoop:
    load = load or made.open_load()
    rows = made.open_rows(load.start_ns, **queue) if rows is None else rows
    found = observe(load, rows, made.arrivals(), slo)
    assert found is not None
    return found


def text_of(page: Path) -> str:
    """The page's text, a space between the cells of a table."""
    return " ".join(" ".join(Tags(page.read_text("utf-8")).pieces).split())


def with_rates(out: Path, slo: SloRate | None, over: Any = None, **answer: Any) -> Path:
    """The folder of a run with a peak, a rate at an SLO, and an overload."""
    return made.keep_rates(made.keep(out, made.run(), made.answer(**answer), made.rate_loads()), slo, over)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with all three, for tests that only read it."""
    out = tmp_path_factory.mktemp("whole")
    return made.write(out, [with_rates(out, made.slo_rate(), made.overload())])


# ---------------------------------------------------------------------------- an open loop


def test_percentiles_are_of_the_raw_rows_and_the_mean_is_that_of_the_queue() -> None:
    found = seen().from_intended
    assert found is not None and found.mean == pytest.approx(STALLED_MEAN_MS)
    # 1,800 requests take 5 ms, the other 200 one step of 5 ms more each: rank 1,900 is the hundredth of them.
    assert (found.p50, found.p90, found.p95, found.p99, found.p99_5) == (5.0, 5.0, 505.0, 905.0, 955.0)
    assert found.most == 1005.0


def test_a_sender_that_stops_at_its_places_in_flight_hides_the_stall_from_the_latency_since_the_send() -> None:
    found = seen(outstanding=20)
    assert found.from_intended == seen().from_intended, "the server is as busy as before"
    assert found.from_sent is not None and found.from_sent.p99 == 100.0, "20 places of 5 ms each"
    assert found.lag_p50_ms == 0.0 and found.lag_p99_ms > 100.0
    told = " ".join(rates.why(found))
    assert "coordinated omission" in told and "a p99 of 905 ms then looks like 100 ms" in told


def test_requests_sent_on_time_are_not_said_to_hide_anything() -> None:
    told = " ".join(rates.why(seen()))
    assert "sent when they were due, so both ways of counting agree" in told
    assert "coordinated omission" not in told


def test_the_stall_is_told_with_what_a_closed_loop_would_have_counted() -> None:
    found = seen()
    assert found.stall is not None
    assert found.stall.at_s == pytest.approx(10.0) and found.stall.seconds == pytest.approx(1.005)
    assert found.stall.due == 101, "one each 10 ms of 1.005 s, the first at its beginning"
    told = rates.why(found)[1]
    assert "101 requests came due, 5.1% of all" in told and "its p99.5 would not show the stall" in told
    closed = percentiles(np.array([1005.0] + [5.0] * (made.REQUESTS - 1)))
    assert closed is not None and closed.p99_5 == 5.0, "which is so"


def test_without_a_stall_none_is_told() -> None:
    assert seen(stall_ns=0).stall is None and len(rates.why(seen(stall_ns=0))) == 1


def test_a_batching_server_is_not_said_to_stall() -> None:
    load = made.open_load()
    rows = made.open_rows(load.start_ns, stall_ns=0)
    ends = 8 * made.GAP_NS  # eight at a time, each batch answered when the next begins
    rows["done_ns"] = load.start_ns + (1 + (rows["intended_ns"] - load.start_ns) // ends) * ends
    assert seen(rows=rows).stall is None


def test_what_was_never_sent_counts_as_over_the_limit_and_in_no_percentile() -> None:
    load = made.open_load(unsent=500, sent=1500, ok=1500, items_ok=1500)
    found = seen(load, made.open_rows(load.start_ns, stall_ns=0)[:1500], Slo(limit_ms=50.0))
    assert found.due == 2000 and found.over_share == pytest.approx(0.25)
    assert found.from_intended is not None and found.from_intended.most == 5.0
    assert not found.keeps_up and "500 of 2000 requests were due and never sent" in found.reasons[0]
    assert "500 of 2,000 never sent" in rates.unsent(found)


def test_over_the_limit_is_late_and_not_answered_well_together() -> None:
    load = made.open_load()
    rows = made.open_rows(load.start_ns)
    rows["status"][:30] = Status.REJECTED
    late = sum(1 for k in range(201) if 1005 - 5 * k > 50)
    found = seen(load, rows, Slo(limit_ms=50.0))
    assert found.over_share == pytest.approx((30 + late) / made.REQUESTS)
    assert len(found.late) == late and len(found.lost) == 30


def test_a_server_that_falls_behind_is_told_to() -> None:
    load = made.open_load()
    rows = made.open_rows(load.start_ns, stall_ns=0)
    rows["done_ns"] = load.start_ns + np.arange(1, made.REQUESTS + 1) * 2 * made.GAP_NS  # 50/s of 100/s
    found = seen(load, rows)
    assert not found.keeps_up and found.answered == pytest.approx(50, rel=0.01)
    assert found.offered == pytest.approx(100, rel=0.01)
    assert "does not keep up" in rates.open_lines(found, "image")[0]


def test_of_a_load_that_its_server_ended_only_what_came_before_was_due_and_nothing_kept_up() -> None:
    """Half of its arrivals; the last ten of them found no server any more."""
    half = made.REQUESTS // 2
    whole = made.open_load()
    load = made.open_load(
        ended="server_lost", end_ns=whole.start_ns + int(made.arrivals()[half - 1]), sent=half - 10, ok=half - 10
    )
    found = seen(load, made.open_rows(load.start_ns, stall_ns=0)[: half - 10])
    assert (found.due, found.keeps_up) == (half, False)
    assert found.offered == pytest.approx(100, rel=0.01)
    told = rates.open_lines(found, "image")
    assert "the load ended early: server lost" in told[0] and f"10 of {half:,} never sent" in " ".join(told)


def test_a_server_that_refuses_what_it_does_not_do_keeps_up_with_nothing() -> None:
    load = made.open_load(ok=made.REQUESTS // 2, rejected=made.REQUESTS - made.REQUESTS // 2)
    found = seen(load, made.open_rows(load.start_ns, stall_ns=0))
    assert not found.keeps_up and found.reasons == ("50.0% of the requests were not answered well",)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_load_of_few_requests_has_its_figures_all_the_same(count: int, tmp_path: Path) -> None:
    load = made.open_load(sent=count, ok=count, items_ok=count)
    rows = made.open_rows(load.start_ns, stall_ns=0)[:count]
    found = observe(load, rows, made.arrivals()[:count])
    assert found is not None and found.due == count and found.seconds == max(0.005, (count - 1) * 0.010)
    folder = made.keep_open(tmp_path, load, rows, made.arrivals()[:count])
    assert "p99.5 5.00 5.00" in text_of(made.write(tmp_path, [folder]))


def test_the_page_shows_both_latencies_and_the_lag_of_an_open_loop(tmp_path: Path) -> None:
    load = made.open_load()
    rows = made.open_rows(load.start_ns, outstanding=20)
    page = made.write(tmp_path, [made.keep_open(tmp_path, load, rows, made.arrivals())])
    text = text_of(page)
    for said in (
        "Offered 100 images/s (constant), answered 100 images/s: the server keeps up.",
        "mean 55.2 22.6",
        "p99 905 100",
        "p99.5 955 955",
        "0 of 2,000",
        "coordinated omission",
        "another rate, or arrivals by another law than constant",
    ):
        assert said in text, said
    assert "Latency from the intended time over the load" in page.read_text()


def test_an_open_loop_reads_the_same_from_either_form_of_its_rows(tmp_path: Path) -> None:
    load = made.open_load(workers=(3,))
    rows = made.open_rows(load.start_ns)
    rows["worker"] = 3
    folder = made.keep_open(tmp_path, load, rows, made.arrivals())
    open_file = requests.read(folder, (3,))
    (folder / "requests" / "3.bin").unlink()
    pl.DataFrame(rows).write_parquet(folder / "requests.parquet")
    assert np.array_equal(requests.read(folder, (3,)), open_file) and len(open_file) == made.REQUESTS
    assert not requests.read(folder, (4,)).size


def test_an_open_loop_without_its_requests_is_said_to_lack_them(tmp_path: Path) -> None:
    folder = made.keep(tmp_path, made.run(), made.open_answer(), (made.open_load(),))
    text = text_of(made.write(tmp_path, [folder]))
    assert "1 open-loop load has kept no requests" in text and "100 images/s" in text


def test_rows_and_schedules_that_are_broken_are_refused_by_name(tmp_path: Path) -> None:
    load = made.open_load()
    folder = made.keep_open(tmp_path, load, made.open_rows(load.start_ns), made.arrivals())
    (folder / str(load.schedule)).write_bytes(b"garbage")
    with pytest.raises(InvalidRecord, match=r"schedule.npy: is no schedule of arrivals"):
        finished.read(folder)
    (folder / str(load.schedule)).unlink()
    assert finished.read(folder).open_loops[0].due == made.REQUESTS, "the rows tell it, too"
    (folder / "requests.parquet").write_bytes(b"garbage")
    with pytest.raises(InvalidRecord, match=r"requests.parquet: cannot be read"):
        finished.read(folder)


def test_a_schedule_is_not_fetched_from_outside_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    np.save(tmp_path / "elsewhere.npy", made.arrivals())
    assert requests.schedule(folder, "../elsewhere.npy") is None
    (tmp_path / "reads.jsonl").write_text("garbage\n")
    assert requests.reads(folder, "../elsewhere.npy") == []


def test_the_page_says_with_the_servers_statistics_that_it_is_the_client_who_does_not_keep_up(tmp_path: Path) -> None:
    """One request in flight, 5 ms each, every one of them sent late: the server says that it had it for 1 ms."""
    load = made.open_load(unsent=500, point=dataclasses.replace(made.OPEN, outstanding=1))
    rows = made.open_rows(load.start_ns, stall_ns=0)
    rows["sent_ns"] += np.arange(len(rows)) * 2_000_000  # ever later
    rows["done_ns"] = np.append(rows["sent_ns"][1:], rows["sent_ns"][-1] + 5_000_000)
    folder = made.keep_open(tmp_path, load, rows, made.arrivals())
    assert not finished.read(folder).open_loops[0].reasons[0].startswith("the client")
    for at_ns in range(load.start_ns, int(rows["done_ns"][-1]), made.SECOND):
        done = int(np.searchsorted(rows["done_ns"], at_ns, "right"))
        read = simulated.a_read(at_ns, done, ms=1.0)
        disk.append((folder / str(load.schedule)).with_name("reads.jsonl"), read)
    assert finished.read(folder).open_loops[0].reasons[0].startswith("the client does not keep up")
    assert requests.schedule(folder, str(tmp_path / "elsewhere.npy")) is None


# ---------------------------------------------------------------------------- the rate at an SLO


def test_the_headline_is_rate_limit_percentile_interval_what_it_is_given_and_its_part_of_the_peak() -> None:
    found = made.slo_rate(
        slo=Slo(limit_ms=50.0), items_per_s=387.2, ci95=(381.0, 392.0), capacity_items_per_s=461.0, given="model"
    )
    told = "387 images/s within 50 ms at p99 (381 to 392, 95% given the queueing model), 0.84 of its capacity"
    assert rates.slo_lines(found, "image")[0] == told
    by_data = rates.slo_lines(dataclasses.replace(found, given="data"), "image")
    assert "95% by the data alone" in by_data[0] and "queueing model" not in " ".join(by_data)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("not_resolvable", "the largest rate within 500 ms at p99 cannot be told"),
        ("unattainable", "no rate is served within 500 ms at p99"),
        ("failing", "the server did not answer well"),
        ("server_lost", "the server was lost"),
        ("aborted", "stopped before it was found"),
    ],
)
def test_a_search_without_a_rate_says_why_in_words_and_gives_no_figure(verdict: Any, said: str, tmp_path: Path) -> None:
    found = made.slo_rate(verdict=verdict, items_per_s=None, ci95=None, trials=(), reason="one batch takes 600 ms",
                          model_rejected="they differ by 8%")  # fmt: skip
    lines = rates.slo_lines(found, "image")
    assert said in lines[0] and "one batch takes 600 ms" in lines
    assert not any("not valid for" in line for line in lines)
    text = text_of(made.write(tmp_path, [with_rates(tmp_path, found)]))
    assert said in text and "one batch takes 600 ms" in text
    assert "queueing model rejected: they differ by 8%" in text
    assert verdict.replace("_", " ").upper() in text and "16.8 images/s" not in text
    assert "19.9 images/s SATURATED" in text, "the peak stands all the same"


@pytest.mark.parametrize(
    ("verdict", "said"), [("met", "100 images/s are served"), ("missed", "100 images/s are NOT served")]
)
def test_a_rate_that_was_asked_for_is_met_or_missed_and_no_largest_one(verdict: Any, said: str, tmp_path: Path) -> None:
    found = SloRate(
        slo=Slo(limit_ms=50.0), items_per_s=100.0, ci95=None, given="data", verdict=verdict, reason="91% were in time"
    )
    assert rates.slo_lines(found, "image")[:2] == [f"{said} within 50 ms at p99", "91% were in time"]
    load = made.open_load()
    folder = made.keep_open(tmp_path, load, made.open_rows(load.start_ns), made.arrivals())
    text = text_of(made.write(tmp_path, [made.keep_rates(folder, found)]))
    assert f"{said} within 50 ms at p99" in text and "91% were in time" in text and "largest rate" not in text
    assert "9.6% of the whole load, its first requests included, took longer than 50 ms" in text, "191 + 0 of 2,000"


def test_the_page_shows_trials_service_times_overheads_and_what_the_rate_is_not_valid_for(whole: Path) -> None:
    text = text_of(whole)
    for said in (
        "16.8 images/s (16.4 to 17.1, 95% given the queueing model), 0.84 of its capacity.",
        "12 16.8 10.0 168 1.2% 1.1% 1.0%",
        "10 15.0 10.0 150 0%",
        "4 1 200 90",
        "0.40 ms and 0.05 ms for each item",
        "74.0 s spent",
        "arrivals that are not Poisson",
        "one client machine",
    ):
        assert said in text, said
    assert "Share of the requests over the limit against the offered rate" in whole.read_text()


def test_a_run_that_was_only_asked_for_the_rate_has_it_as_its_headline(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = made.keep_rates(made.keep(tmp_path, made.run(), None, made.rate_loads()[10:17]), made.slo_rate())
    text = text_of(made.write(tmp_path, [folder]))
    assert "16.8 images/s within 500 ms at p99 RESOLVED" in text and "no answer" not in text
    assert "6 trial loads have no windows" in text and "No load came to its end" not in text
    with made.drawn_once():
        ended = heard_of("report", "--out", str(tmp_path), capfd=capfd)
    assert (ended.code, ended.errors) == (0, []), "nothing is missing"


def test_loads_without_windows_change_neither_curve_nor_tables_of_the_ladder(tmp_path: Path) -> None:
    plain = made.keep(tmp_path / "a", made.run(), made.answer(), made.rate_loads()[: len(made.LADDER)])
    purposes: tuple[Purpose, ...] = ("profile", "trial", "overload")
    apart = tuple(
        made.probe(30 + n, 8, purpose, 1.0, items_per_s=None, ci95=None, latency_ms=None, verdict="no_window")
        for n, purpose in enumerate(purposes)
    )
    both = with_rates(tmp_path / "b", made.slo_rate(), made.overload(), probes=(*made.probes(), *apart))
    for of in (finished.read(both), dataclasses.replace(finished.read(both), answer=None)):
        assert len(of.probes) == len(made.LADDER)
    one, two = (made.write(tmp_path / out, [folder]).read_text() for out, folder in (("a", plain), ("b", both)))
    begin, end = "<h3>Throughput and latency against load</h3>", "<h3>What makes it believable</h3>"
    assert one[one.index(begin) : one.index(end)] == two[two.index(begin) : two.index(end)]
    assert "no_window" not in two.split("</style>")[1]


def test_loads_without_windows_are_left_out_where_no_answer_was_given(tmp_path: Path) -> None:
    folder = made.keep(tmp_path, made.run(), None, made.rate_loads())
    assert {probe.purpose for probe in finished.read(folder).probes} == {p for _, p, _ in made.LADDER}


# ---------------------------------------------------------------------------- overload


def test_the_page_shows_goodput_of_each_policy_and_what_to_type(whole: Path) -> None:
    text = text_of(whole)
    for said in (
        "max_queue_size = 8 queue_timeout_us = 250000",
        "at most 8 requests wait, none waits longer than 250 ms",
        "a full batch of 4 takes 200 ms on 1 instance",
        "b4 2.00 33.6 2.00 18.0 0 0 13.6",
        "b4-short 2.00 33.6 19.0 0 11.7 2.92 0",
        "b4: 2.5 s at 33.6/s not within the load",
        "b4-short: 2.5 s at 33.6/s 0.30",
    ):
        assert said in text, said


def test_the_terminal_has_each_policy_at_its_highest_rate_and_the_recommendation() -> None:
    lines = rates.overload_lines(made.overload(), "image")
    assert lines[0] == "overload, against 16.8 images/s within 500 ms at p99:"
    assert "  b4 at 2.00 x: 2.00/s of 33.6/s in time; late 18.0, rejected 0, expired 0, failed 13.6" in lines
    assert "  b4: not in time again within the load after a burst of 2.5 s at 33.6/s" in lines
    assert "  b4-short: in time again 0.30 s after a burst of 2.5 s at 33.6/s" in lines
    assert "recommended: max_queue_size = 8, queue_timeout_us = 250000" in lines


def test_no_limit_recommended_is_said_so(tmp_path: Path) -> None:
    over = made.overload(max_queue_size=0, queue_timeout_us=0, points=())
    assert "no limit is recommended" in text_of(made.write(tmp_path, [with_rates(tmp_path, made.slo_rate(), over)]))


# ---------------------------------------------------------------------------- files, and what is odd


def test_points_csv_has_a_row_for_each_trial_and_each_point_of_overload(whole: Path) -> None:
    found = list(csv.DictReader(whole.with_name("points.csv").read_text().splitlines()))
    assert [row["Purpose"] for row in found].count("search") == 5
    trial = next(row for row in found if row["Purpose"] == "trial" and row["Offered"] == "18")
    assert (trial["Over SLO"], trial["Request Rate"], trial["Arrivals"]) == ("0.07", "16.8", "poisson")
    assert trial["Items/Second"] == trial["Verdict"] == "", "it has no windows"
    worst = next(row for row in found if row["Policy"] == "b4" and row["Offered"] == "33.6")
    assert (worst["Goodput"], worst["Late"], worst["Failed"], worst["Items/Second"]) == ("2", "18", "13.6", "20")


def test_summary_has_the_rate_and_the_overload_whole(whole: Path) -> None:
    (found,) = json.loads((whole.parents[1] / "latest" / "summary.json").read_text())["runs"]
    assert found["slo"]["items_per_s"] == 16.8 and len(found["slo"]["trials"]) == 6
    assert found["overload"]["max_queue_size"] == 8


def test_several_runs_list_the_rate_at_the_slo_beside_the_peak(tmp_path: Path) -> None:
    folders = [
        with_rates(tmp_path, made.slo_rate()),
        made.keep(tmp_path, made.run(id="20260101T000000Z-b3__b4-999999"), made.answer(variant="b3__b4", probes=())),
    ]
    text = text_of(made.write(tmp_path, folders))
    assert "rate at the SLO" in text and "16.8 within 500 ms at p99" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": (), "service": (), "overheads": None, "capacity_items_per_s": None, "ci95": None},
        {"trials": tuple(dataclasses.replace(t, over_share=0.0, foreseen_share=None, long_run_share=None)
                         for t in made.slo_rate().trials)},
        {"trials": tuple(dataclasses.replace(t, over_share=1.0) for t in made.slo_rate().trials[:1]),
         "ci95": (0.0, 1e9)},
        {"trials": made.slo_rate().trials * 100, "slo": Slo(limit_ms=1e-3, percentile=99.999)},
    ],
)  # fmt: skip
def test_little_or_odd_trials_have_a_page_all_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    page = made.write(
        tmp_path, [with_rates(tmp_path, made.slo_rate(**changes), made.overload(points=(), recoveries=()))]
    )
    words = text_of(page).lower().split()
    assert "nan" not in words and "inf" not in words and len(page.read_text()) < 300_000


def test_hostile_words_of_rates_and_overload_stay_text(tmp_path: Path) -> None:
    bad = CANARY + RIGHT_TO_LEFT + "\x1b[31m"
    slo = made.slo_rate(reason=bad, model_rejected=bad)
    over = made.overload(
        why=bad,
        points=tuple(dataclasses.replace(p, policy=f"{n}{bad}") for n, p in enumerate(made.overload().points)),
        recoveries=tuple(dataclasses.replace(r, policy=bad) for r in made.overload().recoveries),
    )
    page = made.write(tmp_path, [with_rates(tmp_path, slo, over, item=bad, probes=())]).read_text("utf-8")
    tags = Tags(page)
    assert "script" not in tags.tags and "img" not in tags.tags
    assert not set(RIGHT_TO_LEFT + "\x1b") & set(page)
    lines = [*rates.slo_lines(slo, bad), *rates.overload_lines(over, bad)]
    assert not set(RIGHT_TO_LEFT + "\x1b") & set("".join(lines))


def test_equal_runs_with_rates_give_equal_bytes(tmp_path: Path) -> None:
    load = made.open_load()
    pages = []
    for out, write in ((tmp_path / "a", made.write), (tmp_path / "b", report.write)):
        folder = made.keep_open(out, load, made.open_rows(load.start_ns), made.arrivals())
        pages.append(write(out, [made.keep_rates(folder, made.slo_rate(), made.overload())]).read_bytes())
    assert pages[0] == pages[1]
