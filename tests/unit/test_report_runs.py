"""`brim report`: which runs are meant, and what is refused or said of runs that did not end well."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import tests.unit.finished_runs as made
from analysis import finished
from brim import layout
from brim.errors import InvalidRecord, UsageError
from brim.records import Environment
from tests.measuring import heard_of

OTHER_BATCH = "20251231T000000Z-fedcba"


def two_batches(out: Path) -> tuple[list[Path], Path]:
    newest = [
        made.keep(out, made.run(), made.answer()),
        made.keep(out, made.run(id="20260101T000000Z-b3__b4-999999"), made.answer(variant="b3__b4", probes=())),
    ]
    old = made.keep(out, made.run(id="20251231T000000Z-old__b4-111111", batch_id=OTHER_BATCH), made.answer())
    return newest, old


def test_without_a_name_every_run_of_the_newest_batch_is_meant(tmp_path: Path) -> None:
    newest, _ = two_batches(tmp_path)
    assert sorted(finished.choose(tmp_path, [])) == sorted(newest)


def test_a_run_is_named_by_id_unique_beginning_or_folder(tmp_path: Path) -> None:
    newest, old = two_batches(tmp_path)
    assert finished.choose(tmp_path, ["20251231"]) == [old]
    assert finished.choose(tmp_path, [newest[0].name, str(old), old.name]) == [newest[0], old]
    with pytest.raises(UsageError, match=r"begins 2 runs .* give more"):
        finished.choose(tmp_path, ["20260101T"])
    with pytest.raises(UsageError, match="there is no run .* did you mean '20251231T000000Z-old__b4-111111'"):
        finished.choose(tmp_path, ["20251231T000000Z-old__b4-111112"])
    with pytest.raises(UsageError, match="there is no run ''"):
        finished.choose(tmp_path, [""])
    with pytest.raises(UsageError, match="no run.json in it"):
        finished.choose(tmp_path, [str(tmp_path)])


def test_no_runs_are_told_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no runs in .*; `brim loadtest` makes one"):
        finished.choose(tmp_path, [])


def test_a_batch_gives_the_report_its_name_and_a_part_of_it_does_not_replace_it(tmp_path: Path) -> None:
    newest, old = two_batches(tmp_path)
    assert made.write(tmp_path, newest).parent.name == made.BATCH
    assert os.readlink(layout.latest_report(tmp_path)) == made.BATCH
    part = made.write(tmp_path, newest[:1]).parent.name
    assert part.startswith(f"{made.BATCH}-part-") and os.readlink(layout.latest_report(tmp_path)) == part
    assert made.write(tmp_path, [old]).parent.name == OTHER_BATCH
    left = {path.name for path in layout.reports(tmp_path).iterdir()}
    assert left == {made.BATCH, part, OTHER_BATCH, "latest"}, "and no temporary link"


def test_several_variants_are_listed_first_and_differing_software_is_marked(tmp_path: Path) -> None:
    one = made.keep(tmp_path, made.run(), made.answer())
    environment = Environment(machine=made.MACHINE, software={"brim": "0.2.0"})
    other_run = made.run(id="20260101T000000Z-b3__b4-999999", environment=environment)
    two = made.keep(tmp_path, other_run, made.answer(variant="b3__b4", probes=()))
    page = made.write(tmp_path, [one, two]).read_text()
    assert '<a href="#run-2">b3__b4</a>' in page
    assert "0.1.0, 0.2.0" in page and page.count("differs between the runs") == 1


def test_runs_of_two_machines_are_not_put_on_one_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere = Environment(machine={**made.MACHINE, "gpu": "NVIDIA H200"}, software={})
    made.keep(tmp_path, made.run(), made.answer())
    made.keep(tmp_path, made.run(id="20260101T000000Z-b3__b4-999999", environment=elsewhere), made.answer())
    ended = heard_of("report", "--out", str(tmp_path), capfd=capfd)
    assert (ended.code, ended.answers) == (2, "")
    assert "different machines (gpu NVIDIA H200 and none); report them one by one" in ended.errors[0]
    assert not layout.reports(tmp_path).exists()


def test_a_newer_schema_is_refused_by_its_number(tmp_path: Path) -> None:
    folder = made.keep(tmp_path, made.run(), made.answer())
    path = folder / "saturation.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(InvalidRecord, match="schema 7, this Brim reads up to 1"):
        made.write(tmp_path, [folder])


def test_a_run_of_the_newest_batch_that_cannot_be_read_is_refused_and_not_left_out(tmp_path: Path) -> None:
    newest, _ = two_batches(tmp_path)
    (newest[1] / "run.json").write_text("{")
    with pytest.raises(InvalidRecord, match="b3__b4-999999/run.json: not JSON"):
        finished.choose(tmp_path, [])
    (named,) = finished.choose(tmp_path, [newest[0].name])
    assert made.write(tmp_path, [named]).parent.name.startswith(f"{made.BATCH}-part-"), "it is not the whole batch"


def test_a_batch_id_that_is_a_path_is_refused(tmp_path: Path) -> None:
    folder = made.keep(tmp_path, made.run(batch_id="../../elsewhere"), made.answer())
    with pytest.raises(InvalidRecord, match="is no name of a batch"):
        made.write(tmp_path, [folder])


def cut_off(out: Path, status: str) -> Path:
    """A run of one load without an answer, whose last line a kill cut off in the middle of a character."""
    load = made.load(0, 8, "figure", 400)
    folder = made.keep(out, made.run(status=status), None, (load,), (made.window(load, 200, load=0),))
    with (folder / "windows.jsonl").open("ab") as lines:
        lines.write('{"schema": 1, "generator": "loc…'.encode()[:-1])
    return folder


@pytest.mark.parametrize(
    ("status", "told"),
    [("crashed", "crashed"), ("running", "running"), ("closed", "stopped before it had an answer")],
)
def test_a_run_without_an_answer_is_reported_as_what_it_is(status: str, told: str, tmp_path: Path) -> None:
    page = made.write(tmp_path, [cut_off(tmp_path, status)]).read_text()
    assert f'no answer</span> <span class="verdict">{told}</span>' in page
    assert '<td class="n">20.0</td>' in page, "what it had measured until then"
    assert "1 half-written line was left out" in page


def test_the_command_says_where_its_files_are_and_what_was_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut_off(tmp_path, "crashed")
    with made.drawn_once():
        ended = heard_of("report", "--out", str(tmp_path), "--json", capfd=capfd)
    written = json.loads(ended.answers)
    assert (ended.code, written["schema"], written["runs"]) == (0, 1, [made.run().id])
    assert ended.errors == [
        f"brim: {made.run().id}: crashed; the report shows what it had measured",
        f"brim: {made.run().id}: 1 half-written line(s) left out",
    ]
    assert Path(written["report"]).is_file() and Path(written["latest"]).is_symlink()
    assert Path(written["points"]).read_text().count("\n") == 2
    assert json.loads(Path(written["summary"]).read_text())["runs"][0]["answer"] is None


def test_a_broken_line_that_no_kill_explains_is_refused_with_its_place(tmp_path: Path) -> None:
    folder = made.keep(
        tmp_path, made.run(), made.answer(), (made.load(0, 8, "search", 4), made.load(1, 8, "search", 4))
    )
    lines = (folder / "loads.jsonl").read_text().splitlines(keepends=True)
    (folder / "loads.jsonl").write_text("{broken\n" + lines[1])
    with pytest.raises(InvalidRecord, match="loads.jsonl:1: not JSON"):
        made.write(tmp_path, [folder])


def test_a_separator_inside_a_servers_text_ends_no_line(tmp_path: Path) -> None:
    load = made.load(0, 8, "search", 400, errors={"a\u2028b\x85c \ud83d": 1})
    folder = made.keep(tmp_path, made.run(), made.answer(), (load, load))
    assert finished.read(folder).loads[1].errors == load.errors
