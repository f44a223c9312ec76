"""`brim loadtest` on the real Triton: right numbers against the server's own log, and an orderly end to everything.

The known server `sleep` takes 20 ms a batch and logs the start and end of each: that log is the truth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from brim import disk, layout
from brim.records import Access, Run, Window
from brim.say import Say
from experiments.measure import run as measuring
from experiments.measure import targets
from experiments.measure.progress import Progress
from experiments.measure.request import Request
from loadtest import plan
from loadtest.plan import read_plan
from serve import ledger
from serve.executions import read_executions
from tests.measuring import BINS, Bench, start

pytestmark = pytest.mark.contract

CONTRACT = {
    "schema", "run", "batch_id", "variant", "target", "backend", "server_version", "verdict", "limited_by", "reasons",
    "items_per_s", "ci95", "ci_kind", "at", "latency_ms", "effective_batch", "queue_ms", "server_busy",
    "client_cpu_cores", "serving_efficiency", "cross_check", "checks", "seconds_spent",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = start(tmp_path_factory.mktemp("measure"), "sleep:service_ms=20__b8", "null__b8", "image__b8")
    yield made
    ledger.stop(made.server, made.out)


def test_a_server_of_known_capacity_is_found_saturated_at_the_rate_that_it_logged_itself_beside_a_broken_variant(
    bench: Bench,
) -> None:
    done = bench.brim("image__b8", "sleep__b8", "--concurrency", "16:32", "--json", "--quiet")
    document = json.loads(done.stdout)
    assert "the artifact is corrupt" in document["failures"]["image__b8"]
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "brim: exit 3 (not_ready)"
    assert "Traceback" not in done.stderr
    (result,) = document["results"]
    assert set(result) >= CONTRACT - {"schema"}
    assert result["verdict"] == "saturated"
    assert {c["rule"]: c["state"] for c in result["checks"]} == {
        1: "held", 2: "not_applicable", 3: "held", 4: "held", 5: "held",
        6: "not_applicable", 7: "not_applicable", 8: "not_applicable",
    }  # fmt: skip
    folder = layout.run_folder(bench.out, result["run"])
    assert json.loads((folder / "saturation.json").read_text())["schema"] == 1
    assert disk.load(Run, folder / "run.json").status == "closed"
    assert (folder / "requests.parquet").exists() and not list((folder / "requests").glob("*.bin"))

    windows = [w for w in disk.load_lines(Window, folder / "windows.jsonl") if w.kind == "measured"]
    assert {w.generator for w in windows} == {"locust", "perf_analyzer"}
    log = read_executions(layout.server_folder(bench.out, bench.server.id), "sleep__b8")
    for window in windows:
        executed = sum(items for _, end_ns, items in log if window.start_ns < end_ns <= window.end_ns)
        assert window.items_ok == pytest.approx(executed, abs=2 * 8), "answers lag the log by what is under way"
    assert [p["at"]["concurrency"] for p in result["probes"]][:2] == [16, 32], "the bounds that were asked for"
    page = bench.out / "reports" / "latest"
    assert "sleep__b8" in (page / "report.html").read_text()
    assert len((page / "points.csv").read_text().splitlines()) == 1 + len(result["probes"])
    figures = [w for w in windows if w.generator == "locust" and w.point.concurrency == result["at"]["concurrency"]]
    capacity = _capacity(log, figures[0].start_ns, figures[-1].end_ns)
    assert result["items_per_s"] == pytest.approx(capacity, rel=0.05), "the noise of this machine, not of the method"
    assert result["effective_batch"] == pytest.approx(8, abs=0.1)


def _capacity(log: list[tuple[int, int, int]], from_ns: int, to_ns: int) -> float:
    """B over the median period from start to start of full batches: what the server gives when it is kept busy."""
    starts = [start for start, _, items in log if from_ns <= start <= to_ns and items == 8]
    gaps = sorted(b - a for a, b in zip(starts, starts[1:], strict=False))
    return 8e9 / gaps[len(gaps) // 2]


def test_a_single_point_claims_no_plateau_and_a_missing_perf_analyzer_does_not_stop_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "BINS", BINS)
    monkeypatch.setattr(layout, "perf_analyzer", lambda: tmp_path / "perf_analyzer")
    (wanted,) = targets.wanted(["sleep__b8"], "", bench.out)
    request = Request(
        plan=read_plan(bench.loads), batch_id="20260101T000000Z-abcdef", allowed={}, concurrency=3, senders=1,
        items_per_request=2, input_data=None, cross_check=True, figure_rounds=1,
    )  # fmt: skip
    target, progress = targets.describe(wanted, {}, {}, Access()), Progress(lambda share, text: None)
    answer = measuring.measure(target, request, out=bench.out, say=Say(quiet=True), progress=progress).saturation
    assert answer is not None
    assert answer.verdict == "point"
    assert answer.cross_check is None
    states = {c.rule: (c.state, c.reason) for c in answer.checks}
    missing = f"perf_analyzer is not at {tmp_path}/perf_analyzer; `make setup` fetches it"
    assert states[5] == ("not_applicable", missing)
    assert states[1][0] == "held"
    assert f"no cross-check: {missing}" in capsys.readouterr().err
    assert answer.at.items_per_request == 2
    # Three requests of two items: one batch of two runs while the other four items wait for the next.
    assert 2 <= (answer.effective_batch or 0) <= 4
