"""`brim loadtest` on the real Triton: starts of the server, and an orderly end to everything; figures do not matter."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brim import disk, layout
from brim.cli import Outcome, front_door
from brim.errors import BrimError
from brim.records import Load, Run, Saturation, Server
from experiments.measure import ledger as runs
from serve import ledger
from serve.executions import read_executions
from tests.fakes import FakeServer
from tests.measuring import FRONT_DOOR, Bench, children_of, gone, row_bytes, start, until

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = start(tmp_path_factory.mktemp("measure"), "sleep:service_ms=20__b8", "null__b8")
    yield made
    ledger.stop(made.server, made.out)


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


def test_a_load_of_zero_completed_requests_fails_and_keeps_each_of_them_as_timed_out(tmp_path: Path) -> None:
    # No window ever ends such a load, so its limit does.
    short = "import experiments.measure.send\nexperiments.measure.send.LOAD_LIMIT_SECONDS = 2.0\n"
    program = FRONT_DOOR.replace("main(sys", f"{short}main(sys")
    loads = tmp_path / "loads.toml"
    loads.write_text("request_timeout_seconds = 1\ndrain_seconds = 1\n")
    with FakeServer(fault=lambda ordinal: "never") as server:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "lock"), "loadtest", server.url, "tiny", "--concurrency",
             "4", "--out", str(tmp_path), "--loads", str(loads)],
            capture_output=True, text=True, cwd=layout.CHECKOUT, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (4, "brim: exit 4 (failing)"), done.stderr
    assert "no number FAILING: 100.0% of the requests were not ok" in done.stdout
    (run,) = layout.runs(tmp_path).glob("*")
    (load,) = disk.load_lines(Load, run / "loads.jsonl")
    assert (load.ok, load.timed_out, load.errors) == (0, load.sent, {"no answer within 1 s": load.sent})
    assert load.sent == len(server.log) >= 4


def test_a_server_that_does_not_come_back_is_lost_and_its_first_start_is_kept(tmp_path: Path) -> None:
    bench = start(tmp_path, "sleep:service_ms=20__b8")
    child = subprocess.Popen(
        bench.command("sleep__b8", "--concurrency", "16", "--starts", "2", "--no-cross-check"), cwd=layout.CHECKOUT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until("rows on disk", lambda: row_bytes(bench) > 32 * 50 or child.poll() is not None)
        (bench.repository / "sleep__b8" / "config.pbtxt").write_text("no such key: 1\n")
        _, errors = child.communicate(timeout=120)
    finally:
        child.kill()
        ledger.stop(bench.server, bench.out)
    assert child.returncode == 5, errors
    assert errors.splitlines()[-1] == "brim: exit 5 (server_lost)"
    (run,) = bench.runs()
    answer = disk.load(Saturation, run / "saturation.json")
    assert (answer.verdict, answer.starts) == ("server_lost", 1)
    assert answer.reasons[0].startswith("the server did not start again: ")
    assert answer.items_per_s is not None


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
        until("rows on disk", lambda: row_bytes(bench) > 32 * 200)
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


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_under_load_stops_the_senders_and_keeps_what_was_measured(bench: Bench, times: int) -> None:
    before = set(bench.runs())
    child = subprocess.Popen(
        bench.command("sleep__b8", "--concurrency", "4"), cwd=layout.CHECKOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    until("rows on disk", lambda: row_bytes(bench) > 32 * 50 or child.poll() is not None)
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
