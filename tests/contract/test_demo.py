"""`brim demo` as a user runs it: a believable number from both generators, and no server left, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from brim import disk, layout
from brim.records import Run, Server, Window
from engines.digest import engines_digest
from serve import ledger

pytestmark = pytest.mark.contract

#: The plan as it is, but for shorter windows and records: these tests are about the way and not about the figure.
LOADS = "window_seconds = 2\nwindow_batches = 10\nsamples = 8\n"
#: The front door, with variants beside the test instead of in the checkout, and with a lock of the test's own: a user
#: may be measuring on this machine.
FRONT_DOOR = """
import sys
from pathlib import Path
import loadtest.plan
from brim import layout
from brim.cli import main
from experiments.measure import ledger
loadtest.plan.FIGURE = loadtest.plan.SEARCH = loadtest.plan.Length(bins=50, slack=1.5, longer_s=1.0)
layout.model_repository = lambda: Path(sys.argv[1])
ledger.machine_lock = lambda: Path(sys.argv[1]).with_name("measuring.lock")
main(sys.argv[2:])
"""


def command(folder: Path, *words: str) -> list[str]:
    (folder / "loads.toml").write_text(LOADS)
    shared = ["--out", str(folder / "out"), "--loads", str(folder / "loads.toml")]
    return [sys.executable, "-c", FRONT_DOOR, str(folder / "repository"), "demo", *shared, *words]


def until(what: str, held: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not held():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def left_behind(folder: Path) -> list[str]:
    """Processes that name the folder, shared memory of its servers, and notes that something views its variants."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if process.pid != os.getpid() and any(str(folder) in word for word in process.info["cmdline"] or []):
            found.append(f"process {process.info}")
    ids = [path.name for path in layout.servers(folder / "out" / "demo").glob("brim-*")]
    found += [path.name for server_id in ids for path in ledger.SHM.glob(f"{server_id}-*")]
    return found + [path.name for path in (folder / "repository" / ".views").glob("*.json")]


def test_a_demo_measures_by_both_generators_beside_the_engine_alone_and_leaves_no_server(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--json"), capture_output=True, text=True, cwd=layout.CHECKOUT, timeout=150,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["verdict"] == "point"
    assert result["items_per_s"] > 0 and result["cross_check"]["generator"] == "perf_analyzer"
    states = {check["rule"]: (check["state"], check["reason"]) for check in result["checks"]}
    assert {rule: state for rule, (state, _) in states.items()} == {
        1: "held", 2: "not_applicable", 3: "not_applicable", 4: "held", 5: "not_applicable", 6: "held", 7: "held",
        8: "not_applicable",
    }, states  # fmt: skip
    assert re.search(r"[1-8] sampled responses against the engine", states[7][1])
    efficiency = result["items_per_s"] / result["in_process_items_per_s"]
    assert result["serving_efficiency"] == pytest.approx(efficiency, rel=0.05)

    out = tmp_path / "out" / "demo"
    windows = disk.load_lines(Window, layout.run_folder(out, result["run"]) / "windows.jsonl")
    assert {w.generator for w in windows if w.kind == "measured"} == {"locust", "perf_analyzer"}
    software = disk.load(Run, layout.run_folder(out, result["run"]) / "run.json").environment.software
    (server,) = layout.servers(out).glob("brim-*")
    assert software["engines"] == engines_digest()
    assert software["model"] == disk.sha256(layout.model_folder(out, "demo") / "model.onnx")
    assert len(software["model.py"]) == 64 and software["model.py"] != software["engines"]
    assert left_behind(tmp_path) == []
    assert not layout.current_server(out).exists()
    assert not ledger.alive(disk.load(Server, server / "server.json"))


def rows(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "out" / "demo" / "runs").glob("*/requests/*.bin"))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_under_load_leaves_no_server(tmp_path: Path, times: int) -> None:
    child = subprocess.Popen(
        command(tmp_path), cwd=layout.CHECKOUT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until("requests are on their way", lambda: rows(tmp_path) > 32 * 10 or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    while times == 2 and child.poll() is None:  # again until it is heard: two that wait to be heard count as one
        child.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    until("nothing is left", lambda: not left_behind(tmp_path), within_s=20)
    (run,) = layout.runs(tmp_path / "out" / "demo").iterdir()
    if times == 1:
        assert errors.splitlines()[-1] == "brim: exit 130 (aborted)"
        assert disk.load(Run, run / "run.json").status == "closed"
        assert not layout.current_server(tmp_path / "out" / "demo").exists()
    else:
        assert "exit 130" not in errors, "the second ends it at once, before it can say so"
