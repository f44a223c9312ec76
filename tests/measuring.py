"""`brim loadtest` as tests run it: on servers of their own, with short windows and a lock of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from brim import cli, layout, say
from brim.records import Server
from brim.say import Say
from experiments.measure import ledger, send
from loadtest import plan
from serve import embedded
from serve.variants import build, plan_variants

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
loadtest.plan.FIGURE = loadtest.plan.SEARCH = loadtest.plan.Length(bins={BINS}, slack=1.5, longer_s=1.0)
ledger.machine_lock = lambda: Path(sys.argv[1])
main(sys.argv[2:])
"""


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

    def here(self, *words: str, capfd: pytest.CaptureFixture[str]) -> Heard:
        """`brim loadtest` in this process, which imports its rooms once and not for each command."""
        given = [] if "--loads" in words else ["--loads", str(self.loads)]
        return heard(self.out, *words, *given, capfd=capfd)

    def runs(self) -> list[Path]:
        return sorted(layout.runs(self.out).glob("*"), key=lambda p: p.stat().st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """How a command ended, and what it said."""

    code: int
    answers: str  # stdout
    errors: list[str]  # stderr, line by line


def heard(out: Path, *words: str, capfd: pytest.CaptureFixture[str], lock: str = "measuring.lock") -> Heard:
    """`brim loadtest` in this process, with FRONT_DOOR's changes."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(ledger, "machine_lock", lambda: out / lock)
        for name in ("FIGURE", "SEARCH"):
            changed.setattr(send, name, plan.Length(bins=BINS, slack=1.5, longer_s=1.0))
        return heard_of("loadtest", *words, "--out", str(out), capfd=capfd)


def heard_of(*words: str, capfd: pytest.CaptureFixture[str]) -> Heard:
    """`brim` in this process; signals are heard as before afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    capfd.readouterr()
    say.documents = 0  # as in a process of its own
    with pytest.raises(SystemExit) as ended:
        try:
            cli.main(words)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    said = capfd.readouterr()
    assert "Traceback" not in said.err, said.err
    assert isinstance(ended.value.code, int)
    return Heard(code=ended.value.code, answers=said.out, errors=said.err.splitlines())


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


def row_bytes(bench: Bench) -> int:
    return sum(p.stat().st_size for p in layout.runs(bench.out).glob("*/requests/*.bin"))
