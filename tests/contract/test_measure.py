"""`brim loadtest` on the real Triton: right numbers against the server's own log, and an orderly end to everything.

The known server `sleep` takes 20 ms a batch and logs the start and end of each: that log is the truth.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from brim import disk, layout
from brim.cli import Outcome, front_door
from brim.errors import BrimError
from brim.records import Access, Load, Run, Saturation, Server, Window
from brim.say import Say
from experiments.measure import ledger as runs
from experiments.measure import run as measuring
from experiments.measure import targets
from experiments.measure.progress import Progress
from experiments.measure.request import Request
from loadtest import plan
from loadtest.plan import read_plan
from serve import embedded, ledger
from serve.executions import read_executions
from serve.variants import build, plan_variants

pytestmark = pytest.mark.contract

#: Short windows: these tests are about bookkeeping and endings; `benchmarks/` is about figures.
LOADS = "window_seconds = 3\nwindow_batches = 20\nsamples = 8\n"
#: Bins of the steady-state test, which hold a load at 100 for ten seconds; with these it judges all the same.
BINS = 50
#: The front door with that, and with a lock of the test's own: a user may be measuring on this machine.
FRONT_DOOR = f"""
import sys
from pathlib import Path
import loadtest.plan
from brim.cli import main
from experiments.measure import ledger
loadtest.plan.BINS = loadtest.plan.SEARCH_BINS = {BINS}
ledger.machine_lock = lambda: Path(sys.argv[1])
main(sys.argv[2:])
"""
CONTRACT = {
    "schema", "run", "batch_id", "variant", "target", "backend", "server_version", "verdict", "limited_by", "reasons",
    "items_per_s", "ci95", "ci_kind", "at", "latency_ms", "effective_batch", "queue_ms", "server_busy",
    "client_cpu_cores", "serving_efficiency", "cross_check", "checks", "seconds_spent",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    out: Path
    repository: Path
    server: Server

    @property
    def loads(self) -> Path:
        return self.out / "loads.toml"

    def command(self, *words: str) -> list[str]:
        given = [] if "--loads" in words else ["--loads", str(self.loads)]
        lock = str(self.out / "measuring.lock")
        return [sys.executable, "-c", FRONT_DOOR, lock, "loadtest", *words, "--out", str(self.out), *given]

    def brim(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, cwd=layout.CHECKOUT, timeout=240, **options
        )

    def runs(self) -> list[Path]:
        return sorted(layout.runs(self.out).glob("*"), key=lambda p: p.stat().st_mtime_ns)


def start(folder: Path, *models: str) -> Bench:
    """Serve these known servers; `image` is served broken."""
    out, repository = folder / "out", folder / "repository"
    variants = plan_variants(models, [], out=out, configs_file=None, mode="embedded")
    for variant in variants:
        build(variant, out=out, repository=repository, viewed=())
        if variant.model.name == "image":
            (repository / variant.name / "1" / "model.py").write_text("raise RuntimeError('the artifact is corrupt')\n")
    server = embedded.start([v.name for v in variants], out=out, repository=repository, say=Say(quiet=True))
    (out / "loads.toml").write_text(LOADS)
    return Bench(out=out, repository=repository, server=server)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = start(tmp_path_factory.mktemp("measure"), "sleep:service_ms=20__b8", "null__b8", "image__b8")
    yield made
    ledger.stop(made.server, made.out)


def until(what: str, held: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not held():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def children_of(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes if _there(p))


def _there(process: psutil.Process) -> bool:
    try:
        process.status()
    except psutil.Error:
        return False
    return True


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
    answer, _ = measuring.measure(target, request, out=bench.out, say=Say(quiet=True), progress=progress)
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


def test_every_start_of_the_server_is_a_process_of_its_own_at_the_same_address(tmp_path: Path) -> None:
    bench = start(tmp_path, "sleep:service_ms=20__b8", "null__b8")
    try:
        done = bench.brim("--concurrency", "16", "--starts", "2", "--no-cross-check", "--json", "--quiet")
        results = {result["variant"]: result for result in json.loads(done.stdout)["results"]}
        assert {(r["verdict"], r["starts"], r["ci_kind"]) for r in results.values()} == {("point", 2, "within_run")}
        assert set(results) == {"sleep__b8", "null__b8"}, "the second variant meets the server that the first left"
        assert [p["server_start"] for r in results.values() for p in r["probes"]] == [0, 1, 0, 1]

        servers = [
            disk.load(Server, file)
            for file in sorted(layout.servers(bench.out).glob("brim-*/server.json"), key=lambda f: f.stat().st_mtime_ns)
        ]
        assert len(servers) == 3 == len({server.pid for server in servers})
        assert {server.http for server in servers} == {bench.server.http}
        assert [ledger.alive(server) for server in servers] == [False, False, True]
        loads = disk.load_lines(Load, layout.run_folder(bench.out, results["sleep__b8"]["run"]) / "loads.jsonl")
        logged = [
            sum(
                items
                for start_ns, _, items in read_executions(layout.server_folder(bench.out, server.id), "sleep__b8")
                if start_ns > load.start_ns  # before it, Triton's own warm-up of the model
            )
            for server, load in zip(servers, loads, strict=False)
        ]
        assert logged == [load.items_ok for load in loads], "each start answered its own load, and no other"
    finally:
        ledger.stop(ledger.usable(bench.out), bench.out)


def test_a_server_that_brim_did_not_start_is_not_restarted(bench: Bench) -> None:
    done = bench.brim(bench.server.http, "sleep__b8", "--starts", "3")
    assert done.returncode == 2
    assert "--starts 3 restarts the server, and Brim did not start this one" in done.stderr
    assert ledger.alive(bench.server)


def test_a_server_killed_in_the_middle_of_a_window_ends_the_run_in_seconds_and_loses_no_row(tmp_path: Path) -> None:
    bench = start(tmp_path, "sleep:service_ms=20__b8")
    child = subprocess.Popen(
        bench.command("sleep__b8", "--concurrency", "16"), cwd=layout.CHECKOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until("rows on disk", lambda: _row_bytes(bench) > 32 * 200)
        assert bench.server.pid is not None
        os.kill(bench.server.pid, signal.SIGKILL)
        killed = time.monotonic()
        _, errors = child.communicate(timeout=60)
        assert time.monotonic() - killed < 30
    finally:
        child.kill()
        ledger.stop(bench.server, bench.out)
    assert child.returncode == 5
    assert errors.splitlines()[-1] == "brim: exit 5 (server_lost)"
    assert "Traceback" not in errors
    (run,) = bench.runs()
    assert disk.load(Run, run / "run.json").status == "closed"
    answer = disk.load(Saturation, run / "saturation.json")
    assert answer.verdict == "server_lost"
    assert (run / "requests.parquet").stat().st_size > 0


def _row_bytes(bench: Bench) -> int:
    return sum(p.stat().st_size for p in layout.runs(bench.out).glob("*/requests/*.bin"))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_under_load_stops_the_senders_and_keeps_what_was_measured(bench: Bench, times: int) -> None:
    before = set(bench.runs())
    child = subprocess.Popen(
        bench.command("sleep__b8", "--concurrency", "4"), cwd=layout.CHECKOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    until("rows on disk", lambda: _row_bytes(bench) > 32 * 50 or child.poll() is not None)
    senders = children_of(child.pid)
    assert senders
    child.send_signal(signal.SIGINT)
    while times == 2 and child.poll() is None:  # again until it is heard: two that wait to be heard count as one
        child.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, errors = child.communicate(timeout=40)
    assert child.returncode == 130
    assert "Traceback" not in errors
    until("the senders have ended", lambda: gone(senders))
    (run,) = set(bench.runs()) - before
    if times == 1:
        assert errors.splitlines()[-1] == "brim: exit 130 (aborted)"
        assert disk.load(Saturation, run / "saturation.json").verdict == "aborted"
        assert disk.load(Run, run / "run.json").status == "closed"
    else:
        again = bench.brim("no-such-variant")
        assert again.returncode == 2
        assert f"run {run.name} was cut off by a kill" in again.stderr
        assert disk.load(Run, run / "run.json").status == "crashed"
    assert (run / "requests.parquet").stat().st_size > 0
    assert ledger.alive(bench.server), "a server that stays up is not the load's to stop"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["slep__b8"], 2, "'slep__b8' is not served; did you mean 'sleep__b8'?"),
        (["sleep__b8", "--items-per-request", "9"], 2, "max_batch"),
        (["sleep__b8", "--shape", "INPUT"], 2, "--shape 'INPUT': write NAME:DIMS"),
        (["sleep__b8", "--loads", "/nonexistent/loads.toml"], 2, "/nonexistent/loads.toml"),
        (["grpc://127.0.0.1:1", "sleep__b8"], 3, "does not answer"),
        (["sleep__b8", "--concurrency", "64:1"], 2, "the ladder would begin above its end; write 1:64"),
        (["http://127.0.0.1:1", "sleep__b8"], 3, "`make serve` starts"),
        (["http://127.0.0.1:1"], 2, "name one model behind the URL"),
        (["http://user:secret@127.0.0.1:1", "m"], 2, "holds user info"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(
    bench: Bench,
    words: list[str],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "machine_lock", lambda: tmp_path / "lock")
    arguments = bench.command(*words)[4:]
    before = bench.runs()
    try:  # in this process: another would import for seconds
        front_door.main(arguments, standalone_mode=False)
    except BrimError as error:
        heard, ended = str(error), error.exit_code
    except Outcome as outcome:
        heard, ended = capsys.readouterr().err.strip(), outcome.code
    else:
        raise AssertionError("it was not refused")
    assert ended == code, heard
    assert told in heard and "\n" not in heard
    assert "secret" not in heard
    assert bench.runs() == before, "nothing was opened for it"


def test_a_folder_that_is_full_ends_the_run_with_exit_6_and_nothing_half_written(bench: Bench) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    before = set(bench.runs())
    done = bench.brim("null__b8", "--concurrency", "16", "--no-cross-check", preexec_fn=small_files)
    assert done.returncode == 6, done.stderr
    assert "no room left" in done.stderr
    assert done.stderr.splitlines()[-1] == "brim: exit 6 (resources)"
    (run,) = set(bench.runs()) - before
    for file in run.glob("*.json"):
        json.loads(file.read_text())
