"""The journal of the benchmark of the truth: what is done is not done again, what failed is told."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.served import outcome
from benchmarks.truth import __main__ as truth
from benchmarks.truth.journal import Book, Line, at_most, finished, journal, table, told, within
from brim.errors import Lost, NotReady


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three parts in place of the real ones: one that holds, one that misses, one whose server is lost."""
    seen: list[str] = []

    def good(book: Book) -> None:
        seen.append("good")
        book.keep(rate=350.0)
        book.add(within("capacity", 386.0, 384.0, 0.01, "/s"))

    def bad(book: Book) -> None:
        seen.append("bad")
        book.add(at_most("seconds", 150.0 + book.earlier("good")["rate"] * 0, 120.0, " s"), told("beside", "this"))

    def lost(book: Book) -> None:
        seen.append("lost")
        book.add(told("before", "something"))
        raise Lost("the server went away")

    monkeypatch.setattr(truth, "PARTS", {"good": good, "bad": bad, "lost": lost})
    return seen


def test_a_part_that_is_done_is_not_measured_again(calls: list[str], tmp_path: Path) -> None:
    assert truth.main(["--part", "good", "--out", str(tmp_path)]) == 0
    assert truth.main(["--part", "good", "--out", str(tmp_path)]) == 0
    assert calls == ["good"]
    assert truth.main(["--part", "good", "--out", str(tmp_path), "--again"]) == 0
    assert calls == ["good", "good"]


def test_a_part_that_failed_is_told_and_measured_again_and_the_others_go_on(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = ["--out", str(tmp_path), "--part", "lost", "good", "bad"]
    assert truth.main(everything) == 1
    assert calls == ["lost", "good", "bad"]
    said = capsys.readouterr().out
    assert "lost: not measured to its end: the server went away" in said
    assert "1 of 2 bounds missed, 1 parts failed" in said
    assert truth.main(everything) == 1
    assert calls == ["lost", "good", "bad", "lost"]


def test_a_command_that_does_not_end_fails_its_part_and_not_the_others(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(book: Book) -> None:
        raise subprocess.TimeoutExpired("perf_analyzer", 180)

    monkeypatch.setattr(truth, "PARTS", {"slow": slow, "good": truth.PARTS["good"]})
    assert truth.main(["--out", str(tmp_path), "--part", "slow", "good"]) == 1
    assert calls == ["good"]
    assert "slow: not measured to its end: Command 'perf_analyzer' timed out" in capsys.readouterr().out


def test_a_benchmark_whose_command_does_not_end_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: Sequence[str]) -> int:
        raise subprocess.TimeoutExpired("perf_analyzer", 180)

    monkeypatch.setattr("benchmarks.served.signal.signal", lambda *_: None)  # the test run keeps its own handler
    assert outcome(main) == Lost.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "'perf_analyzer' timed out after 180 seconds" in line


def test_a_part_that_needs_another_says_which(calls: list[str], tmp_path: Path) -> None:
    assert truth.main(["--part", "bad", "--out", str(tmp_path)]) == 1
    with pytest.raises(NotReady, match="--part good"):
        Book("bad", tmp_path, share=1.0).earlier("good")


def test_a_part_that_fails_when_measured_again_leaves_no_old_figures(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert truth.main(["--part", "good", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(truth, "PARTS", {**truth.PARTS, "good": truth.PARTS["lost"]})
    assert truth.main(["--part", "good", "--out", str(tmp_path), "--again"]) == 1
    assert finished(journal(tmp_path, 1.0), "good") is None


def test_what_was_shortened_is_no_truth(calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert truth.main(["--part", "good", "--out", str(tmp_path), "--shortened", "0.1"]) == 0
    assert "nothing else" in capsys.readouterr().out
    assert finished(journal(tmp_path, 1.0), "good") is None
    assert truth.main(["--part", "good", "--out", str(tmp_path)]) == 0
    assert calls == ["good", "good"]
    book = Book("good", tmp_path, share=0.1)
    assert (book.scaled(300.0), book.scaled(10.0), book.scaled(1.0)) == (30.0, 2.0, 1.0)
    assert Book("good", tmp_path, share=1.0).scaled(300.0) == 300.0


def test_a_part_keeps_its_lines_its_figures_and_the_machine(calls: list[str], tmp_path: Path) -> None:
    truth.main(["--part", "good", "--out", str(tmp_path)])
    found = finished(journal(tmp_path, 1.0), "good")
    assert found is not None
    assert found.figures == {"rate": 350.0}
    assert found.environment.machine["cores"]
    assert [line.what for line in found.lines] == ["capacity"]


def test_the_table_has_a_line_for_each_bound_with_its_verdict(calls: list[str], tmp_path: Path) -> None:
    truth.main(["--part", "good", "bad", "--out", str(tmp_path)])
    parts = [finished(journal(tmp_path, 1.0), part) for part in ("good", "bad")]
    head, *lines = table([one for one in parts if one is not None]).splitlines()
    assert head.split() == ["part", "what", "bound", "measured", "s"]
    assert [line.split()[0] for line in lines] == ["good", "bad", "bad"]
    assert "within 1% of 384/s" in lines[0] and "386/s (+0.52%)" in lines[0] and "held" in lines[0]
    assert "MISSED" in lines[1]
    assert "MISSED" not in lines[2] and "held" not in lines[2]


def test_no_figure_is_a_missed_bound() -> None:
    lines: list[Line] = [within("", None, 1.0, 0.1), within("", 1.0, None, 0.1), at_most("", None, 1.0)]
    assert [line.held for line in lines] == [False, False, False]
    assert within("", 98.01, 100.0, 0.02).held and not within("", 97.99, 100.0, 0.02).held
    assert at_most("", 120.0, 120.0).held and not at_most("", 120.1, 120.0).held
