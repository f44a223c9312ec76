"""One part of a gpu-check: probe the host, run cells until the part's time is up, write the result.

Reads and writes out/gpu-check/<machine id>/: journal.jsonl (one entry a cell, appended as it ends), gpu-check.json,
gpu-check.md, child.log (what the last child printed). A part can be killed at any moment; the next goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from brim import disk, layout
from brim.errors import NotReady, NoValidNumber
from brim.say import Say
from experiments.gpu_check import cells, tables
from experiments.gpu_check.cells import Cell, Entry, Outcome
from experiments.gpu_check.child import REASON_CHARACTERS, Spec
from experiments.gpu_check.host import Device, Host
from experiments.gpu_check.results import GpuCheck, conclude
from experiments.gpu_check.timing import Effort

PROBE_LIMIT_S = 120.0
PACKAGES = ("torch", "timm")

T = TypeVar("T")


def run_part(
    say: Say,
    out: Path,
    *,
    minutes: float,
    device: Device = "cuda",
    plan: Sequence[Cell] | None = None,
    effort: Effort | None = None,
    limit_s: Callable[[Cell], float] = cells.limit_s,
) -> GpuCheck:
    """Probe, run what is left of the plan for `minutes`, and give back all that is known by then."""
    deadline = time.monotonic() + 60 * minutes
    plan = cells.plan() if plan is None else plan
    host = _probe(device)
    folder = disk.make_folder(out.resolve() / "gpu-check" / host.machine_id)
    journal = disk.load_lines(Entry, folder / "journal.jsonl")
    with disk.lock(folder / "lock", f"another gpu-check runs in {folder}; wait for it or end it"):
        say.progress(f"gpu-check on {host.name}: {len(cells.left(plan, journal))} cells left, results in {folder}")
        try:
            _run_cells(say, folder, plan, journal, host, deadline, effort or Effort(), limit_s)
        finally:
            result = conclude(plan, journal, host)
            disk.save(folder / "gpu-check.json", result)
            disk.save_text(folder / "gpu-check.md", tables.markdown(result))
    if not any(entry.outcome == "ok" for entry in journal):
        first = journal[0].reason if journal else f"no cell ended within {minutes:g} minutes"
        raise NoValidNumber(f"{folder}: no cell gave a figure ({first}); see child.log there")
    return result


def _run_cells(
    say: Say,
    folder: Path,
    plan: Sequence[Cell],
    journal: list[Entry],
    host: Host,
    deadline: float,
    effort: Effort,
    limit_s: Callable[[Cell], float],
) -> None:
    """Append an entry for each cell; a cell that the end of the part cuts off is not recorded and runs again."""
    ran = 0
    while (cell := cells.next_cell(plan, journal)) is not None:
        remaining_s = deadline - time.monotonic()
        if ran and remaining_s < cells.expected_s(cell):
            return
        limit = limit_s(cell)
        # The first cell of a part has its full limit, or a slow one would be cut off in every part.
        bound = limit if not ran else min(limit, remaining_s)
        entry = _run_cell(Spec(cell=cell, device=host.device, effort=effort, gpu_uuid=host.gpu_uuid), folder, bound)
        if entry.outcome == "timeout" and bound < limit:
            return
        disk.append(folder / "journal.jsonl", entry)
        journal.append(entry)
        ran += 1
        say.progress(tables.progress(entry, cells.left(plan, journal)))


def _run_cell(spec: Spec, folder: Path, limit: float) -> Entry:
    """One cell in a fresh process: its entry, or what its death says."""
    spec_file, result_file = folder / "spec.json", folder / "result.json"
    result_file.unlink(missing_ok=True)
    disk.save(spec_file, spec)
    started_utc = datetime.now(UTC).isoformat(timespec="seconds")
    started = time.monotonic()
    code = _child(["measure", str(os.getpid()), str(spec_file), str(result_file)], folder / "child.log", limit)
    if result_file.exists():
        entry = disk.load(Entry, result_file)
    else:
        outcome: Outcome = "timeout" if code is None else "crash"
        why = f"not done within {limit:.0f} s" if code is None else _how_it_died(code, folder / "child.log")
        entry = Entry(cell=spec.cell, outcome=outcome, reason=why, gpu_uuid=spec.gpu_uuid)
    return dataclasses.replace(entry, seconds=round(time.monotonic() - started, 2), started_utc=started_utc)


def _probe(device: Device) -> Host:
    """The host as a child sees it; NotReady in one line if it gives no figures."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise NotReady(f"gpu-check needs the Python package {package}, {sys.executable} has none; install it there")
    with tempfile.TemporaryDirectory(prefix="brim-gpu-check-") as place:
        result, log = Path(place) / "host.json", Path(place) / "child.log"
        code = _child(["probe", str(os.getpid()), device, str(result)], log, PROBE_LIMIT_S)
        if not result.exists():
            why = f"no answer in {PROBE_LIMIT_S:.0f} s" if code is None else _how_it_died(code, log)
            raise NotReady(f"torch could not look at this host ({why}); try `python3 -c 'import torch'`")
        host = disk.load(Host, result)
    if host.problem:
        raise NotReady(
            f"no GPU to check: {host.problem}; run it on a host with an NVIDIA GPU and a CUDA build of torch"
        )
    return host


def _child(arguments: list[str], log: Path, limit: float) -> int | None:
    """Run the child module as a process group of its own; its exit code, or None if it was ended at `limit` seconds."""
    path = os.pathsep.join(filter(None, [str(layout.CHECKOUT), os.environ.get("PYTHONPATH")]))
    with disk.told(log), log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.gpu_check.child", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=layout.CHECKOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the whole group
        )
    try:
        return process.wait(timeout=max(1.0, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # compile workers too
        process.wait()


def _how_it_died(code: int, log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"{how}: {lines[-1].strip()}"[:REASON_CHARACTERS] if lines else how
