"""The run's own folder: opened before anything is sent, closed whatever happened, recovered after a kill."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from brim import disk, layout
from brim.environment import describe, digest_of
from brim.errors import BrimError
from brim.records import Calibration, Run, Target
from engines.digest import engines_digest
from experiments.measure.targets import variant_folder
from loadtest.rows import close_rows


def new_batch_id() -> str:
    """Names the runs of one command: UTC to the second and six hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def open_run(out: Path, target: Target, batch_id: str) -> Run:
    """Make out/runs/<utc>-<variant>-<id>/ with run.json, status `running`."""
    stamp = batch_id.partition("-")[0]
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in target.model)[:80]
    run = Run(
        id=f"{stamp}-{name}-{secrets.token_hex(3)}",
        batch_id=batch_id,
        command=shlex.join(["brim", *sys.argv[1:]]),
        target=target,
        environment=describe(software_of(target)),
        started_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        pid=os.getpid(),
        process_started_s=psutil.Process().create_time(),
        unix_ns=time.time_ns(),
        monotonic_ns=time.monotonic_ns(),
    )
    disk.save(layout.run_folder(out, run.id) / "run.json", run)
    return run


def software_of(target: Target) -> dict[str, str]:
    """What decides the number besides this process: server, engine code and model."""
    found = {"server": f"{target.server_name} {target.server_version}", "engines": engines_digest()}
    if target.variant is not None:
        found["model"] = target.variant.model.digest
    folder = variant_folder(target)
    if folder is not None:
        found["model.py"] = digest_of(folder.glob("*.py"))
    return found


def close_run(out: Path, run: Run, *, crashed: bool = False) -> None:
    """Rows become requests.parquet, and run.json says that nobody writes here any more.

    Rows that cannot be rewritten (a full disk) stay readable as they are; run.json is closed all the same.
    """
    folder = layout.run_folder(out, run.id)
    try:
        close_rows(folder)
    finally:
        disk.save(folder / "run.json", dataclasses.replace(run, status="crashed" if crashed else "closed"))


def recover(out: Path) -> tuple[list[str], list[str]]:
    """Close the runs whose process died without closing them (a kill, a power cut): their ids, and what would not."""
    recovered, refused = [], []
    for path in sorted(layout.runs(out).glob("*/run.json")):
        try:
            run = disk.load(Run, path)
            if run.status == "running" and not _lives(run):
                close_run(out, run, crashed=True)
                recovered.append(run.id)
        except BrimError as error:  # one broken run must not keep the next from being measured
            refused.append(str(error))
    return recovered, refused


def _lives(run: Run) -> bool:
    try:
        return bool(abs(psutil.Process(run.pid).create_time() - run.process_started_s) < 1.0)
    except psutil.Error:
        return False


def machine_lock() -> Path:
    """One lock for all checkouts and users: two measurements on one machine measure each other."""
    return Path("/tmp/brim-measuring.lock")  # not where TMPDIR says: every shell's may be another


def calibration(out: Path) -> Calibration | None:
    """The newest one; None if there is none that can be read."""
    try:
        return disk.load(Calibration, layout.latest_calibration(out))
    except BrimError:
        return None
