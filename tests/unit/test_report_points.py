"""points.csv against the header that perf_analyzer itself wrote, and against arithmetic."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

import tests.unit.finished_runs as made
from analysis import finished, points
from brim.records import Probe, Run, Saturation, Verdict

PERF_ANALYZER = Path(__file__).parents[1] / "data" / "perf_analyzer" / "sleep.csv"


def rows(tmp_path: Path, answer: Saturation, run: Run | None = None) -> list[dict[str, str]]:
    folder = made.keep(tmp_path, run or made.run(), answer)
    return list(csv.DictReader(io.StringIO(points.csv_text([finished.read(folder)]))))


def test_the_header_begins_as_perf_analyzers_own_in_its_order() -> None:
    theirs = PERF_ANALYZER.read_text().splitlines()[0].split(",")
    assert list(points.COLUMNS)[: len(theirs)] == theirs
    promised = ("Items/Second", "Effective Batch", "CI Low", "CI High", "Verdict", "Limited By", "Reason")
    assert set(promised) < set(points.COLUMNS)


def test_every_load_has_its_row_with_rates_in_items_and_times_in_microseconds(tmp_path: Path) -> None:
    (probe,) = (p for p in made.probes() if p.load == 3)  # 8 in flight at 19.8/s: 404 ms by Little's law
    row = rows(tmp_path, made.answer())[3]
    assert row["Concurrency"] == "8" and row["Inferences/Second"] == row["Items/Second"] == "19.8"
    assert row["p50 latency"] == row["Avg latency"] == "404040"
    assert int(row["Server Queue"]) + int(row["Server Compute"]) + int(row["Outside Server"]) == 404_040
    assert (row["CI Low"], row["CI High"]) == ("19.602", "19.998")
    assert (row["Verdict"], row["Purpose"], row["Effective Batch"]) == (probe.verdict, "search", "4")
    assert len(rows(tmp_path, made.answer())) == len(made.LADDER)


def test_what_is_not_known_is_empty_and_never_zero(tmp_path: Path) -> None:
    blind = made.probe(
        0, 8, "figure", 1.0, items_per_s=None, ci95=None, latency_ms=None, effective_batch=None, queue_ms=None,
        server_ms=None, server_busy=None, batch_counts={}, verdict="no_window",
    )  # fmt: skip
    (row,) = rows(tmp_path, made.answer(probes=(blind,)))
    told = {"Concurrency", "Verdict", "Limited By", "Variant", "Purpose", "Generator", "Senders", "Items/Request",
            "Protocol", "Transport", "Server Start", "Run"}  # fmt: skip
    assert {name for name, cell in row.items() if cell} == told
    never_ours = ("Client Send", "Server Compute Infer", "Client Recv", "Network+Server Send/Recv")
    assert not any(r[name] for r in rows(tmp_path, made.answer()) for name in never_ours)


def test_what_limits_stands_only_where_the_figure_was_taken(tmp_path: Path) -> None:
    told = [(row["Purpose"], row["Limited By"]) for row in rows(tmp_path, made.answer())]
    assert {limit for purpose, limit in told if purpose == "figure"} == {"engine"}
    assert {limit for purpose, limit in told if purpose != "figure"} == {""}


@pytest.mark.parametrize("begins", "=+-@")
def test_a_cell_that_a_spreadsheet_would_run_is_defused(begins: str, tmp_path: Path) -> None:
    hostile = made.probe(0, 8, "figure", 20.0, reason=f'{begins}HYPERLINK("x")')
    variant = f"{begins}1+1"
    (row,) = rows(tmp_path, made.answer(probes=(hostile,), variant=variant, verdict=Verdict.POINT))
    assert row["Reason"] == f'\'{begins}HYPERLINK("x")' and row["Variant"] == f"'{variant}"


def test_escapes_and_line_ends_of_a_servers_text_stay_out(tmp_path: Path) -> None:
    loud: Probe = made.probe(0, 8, "figure", 20.0, reason='\x1b[31mred\x1b[0m,\r\n"two"\x00\x9b1m \u202eend\ud800')
    (row,) = rows(tmp_path, made.answer(probes=(loud,)))
    assert row["Reason"] == 'red, "two" end'
