"""Starts load with our own senders: one child process each, released together, their results summed.

Writes spec.json and the children's logs into the load's folder, reads their results; result.json is the sum.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from brim import disk, guard, layout
from brim.errors import BrimError, NoResource, NotReady, UsageError, WorkerLost, did_you_mean
from brim.records import Status
from judging.rows import decode
from loadtest.driver import LoadResult, LoadSpec, RunningLoad, counts_of
from loadtest.senders.answers import clean
from loadtest.senders.job import most_per_s
from loadtest.senders.tally import result_file, row_file

READY_WITHIN_S = 90.0  # importing Locust takes a second or two, on a busy machine many
LEAD_NS = 50_000_000  # between the word and the common start, for the word to reach every child
MARGIN_S = 10.0  # beyond its own bounds a child gets so long to write, then it is killed
LOG_TAIL_BYTES = 4096
#: Which end stands for several senders: the worst.
ENDINGS: tuple[Literal["crashed", "server_lost", "stopped", "finished"], ...] = (
    "crashed",
    "server_lost",
    "stopped",
    "finished",
)


#: How bytes leave -> the module whose main runs one sender process.
MODULES = {
    "locust_http": "loadtest.senders.locust_run",
    "grpc_aio": "loadtest.senders.grpc_run",
    "tritonclient_http": "loadtest.senders.tritonclient_http",
    "tritonclient_grpc": "loadtest.senders.tritonclient_grpc",
    "loadgen": "loadtest.senders.loadgen_run",
}


class SenderDriver:
    """Drives load with the sender that the load point names."""

    generator: Literal["locust", "perf_analyzer", "loadgen"] = "locust"
    ends_itself = False

    def start(self, spec: LoadSpec, folder: Path) -> RunningLoad:
        """Start the senders, wait until each has its connections, and release them together."""
        _require_ours(spec)
        return begin(spec, folder)


def begin(spec: LoadSpec, folder: Path) -> RunningLoad:
    """Start the processes of spec.point.sender, wait until each has its connections, and release them together."""
    disk.make_folder(folder)
    spec_file = disk.save(folder / "spec.json", spec)
    children: list[subprocess.Popen[str]] = []
    try:
        for number in range(spec.point.senders):
            children.append(_spawn(spec_file, folder, number, spec))
        for child in children:
            _await_ready(child)
        start_ns = time.monotonic_ns() + LEAD_NS
        for child in children:
            _tell(child, f"start {start_ns}\n")
    except BaseException:
        _end(children)
        raise
    return SenderLoad(spec, folder, children, start_ns)


class SenderLoad:
    """The running senders of one load point."""

    def __init__(self, spec: LoadSpec, folder: Path, children: Sequence[subprocess.Popen[str]], start_ns: int) -> None:
        self._spec, self._folder, self._children = spec, folder, children
        self._workers = tuple(range(spec.first_worker, spec.first_worker + len(children)))
        self._start_ns = start_ns
        self._deadline = time.monotonic() + spec.seconds + spec.drain_s + MARGIN_S
        self._stopped = False

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.pid for child in self._children)

    def running(self) -> bool:
        """False once every sender has ended; one that ended badly takes the others with it."""
        codes = [child.poll() for child in self._children]
        if any(code not in (None, 0) for code in codes):
            self.stop()
        return None in codes

    def stop(self) -> None:
        """Ask every sender to stop and drain."""
        if self._stopped:
            return
        self._stopped = True
        self._deadline = min(self._deadline, time.monotonic() + self._spec.drain_s + MARGIN_S)
        for child in self._children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)

    def finish(self) -> LoadResult:
        """Wait, kill what stays, and sum up."""
        while self.running() and time.monotonic() < self._deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                next(c for c in self._children if c.returncode is None).wait(0.05)
        _end(self._children)
        parts = [self._part(child, worker) for child, worker in zip(self._children, self._workers, strict=True)]
        total = merged(parts)
        with contextlib.suppress(NoResource):  # a full disk is in the result already
            disk.save(self._folder / "result.json", total)
        return total

    def _part(self, child: subprocess.Popen[str], worker: int) -> LoadResult:
        """One sender's own result, or what its rows say if it left none."""
        try:
            return disk.load(LoadResult, result_file(self._folder, worker))
        except BrimError:
            code = child.returncode
            no_room = code == NoResource.exit_code
            how = f"signal {-code}" if code < 0 else f"exit code {code}{' (no room left)' if no_room else ''}"
            reason = f"sender {worker} ended with {how}: {_last_line(_log(self._folder, worker))}"
            return recovered(
                row_file(Path(self._spec.rows), worker),
                worker,
                start_ns=self._start_ns,
                end_ns=time.monotonic_ns(),
                reason=reason,
                no_room=no_room,
            )


def recovered(file: Path, worker: int, *, start_ns: int, end_ns: int, reason: str, no_room: bool = False) -> LoadResult:
    """The result of a sender that left none, counted from the rows that reached the disk."""
    counts, items = [0] * len(Status), 0
    with contextlib.suppress(OSError, BrimError):
        rows = decode(file.read_bytes(), str(file))[1]
        counts = [int((rows["status"] == status).sum()) for status in Status]
        items = int(rows["items"][rows["status"] == Status.OK].sum(dtype="int64"))
    return LoadResult(
        workers=(worker,),
        start_ns=start_ns,
        end_ns=end_ns,
        **counts_of(counts),
        items_ok=items,
        client_cpu_s=0.0,
        ended="crashed",
        reason=reason,
        no_room=no_room,
    )


def merged(parts: Sequence[LoadResult]) -> LoadResult:
    """The results of several senders as one: counts summed, the earliest start, the latest end, the worst ending."""
    errors: Counter[str] = Counter()
    for part in parts:
        errors.update(part.errors)
    ended = next(e for e in ENDINGS if any(p.ended == e for p in parts))
    return LoadResult(
        workers=tuple(w for p in parts for w in p.workers),
        start_ns=min(p.start_ns for p in parts),
        end_ns=max(p.end_ns for p in parts),
        sent=sum(p.sent for p in parts),
        ok=sum(p.ok for p in parts),
        rejected=sum(p.rejected for p in parts),
        timed_out=sum(p.timed_out for p in parts),
        failed=sum(p.failed for p in parts),
        cancelled=sum(p.cancelled for p in parts),
        items_ok=sum(p.items_ok for p in parts),
        client_cpu_s=sum(p.client_cpu_s for p in parts),
        ended=ended,
        errors=dict(errors),
        samples=tuple(s for p in parts for s in p.samples),
        reason=next((p.reason for p in parts if p.ended == ended), ""),
        no_room=any(p.no_room for p in parts),
        unsent=sum(p.unsent for p in parts),
    )


def _require_ours(spec: LoadSpec) -> None:
    """UsageError for what these senders do not send."""
    point = spec.point
    if point.sender not in MODULES:
        raise UsageError(f"no sender is called {point.sender!r}; {did_you_mean(point.sender, MODULES)}")
    if (point.mode == "open") != (spec.arrivals is not None):
        raise UsageError(f"a load point that is {point.mode} with arrivals {spec.arrivals}: an open loop needs them")
    if point.rate_per_s is not None:
        _require_allowed(spec, point.rate_per_s)


def _require_allowed(spec: LoadSpec, rate_per_s: float) -> None:
    """UsageError if the schedule as a whole is faster than its host may be loaded: the senders would never keep up."""
    endpoint = guard.parse_url(spec.url)
    most = most_per_s(endpoint, spec.allowed, senders=1)
    if 0 < most < rate_per_s:
        raise UsageError(
            f"{rate_per_s:g} requests/s are more than the {most:g}/s that {endpoint.host} may get; lower the rate, "
            "or raise max_rate_per_s in the project file if the host is yours to load"
        )


def _spawn(spec_file: Path, folder: Path, number: int, spec: LoadSpec) -> subprocess.Popen[str]:
    """One sender in a session of its own: Ctrl-C in the terminal reaches only the parent, which then stops it."""
    paths = [str(layout.CHECKOUT), os.environ.get("PYTHONPATH", "")]
    module = MODULES[spec.point.sender]
    with disk.told(folder), _log(folder, spec.first_worker + number).open("wb") as log:
        return subprocess.Popen(
            # -P: the user's folder is not where modules come from
            [sys.executable, "-P", "-m", module, str(spec_file), str(number), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
            start_new_session=True,
        )


def _log(folder: Path, worker: int) -> Path:
    return folder / f"sender-{worker}.log"


def _await_ready(child: subprocess.Popen[str]) -> None:
    """Wait for the child's first line: `ready`, or its error, which is raised here as its own kind."""
    assert child.stdout is not None  # it was opened as a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        line = child.stdout.readline() if selector.select(READY_WITHIN_S) else ""
    if line == "ready\n":
        return
    try:
        told = json.loads(line)
        code, message = int(told["exit_code"]), str(told["message"])
    except (ValueError, TypeError, KeyError):
        gone = "ended" if child.poll() is not None or line else f"was not ready within {READY_WITHIN_S:.0f} s"
        where = "sender-*.log in the load's folder says why"
        raise WorkerLost(f"a sender {gone} before it sent anything; {where}") from None
    kinds: dict[int, type[BrimError]] = {k.exit_code: k for k in (UsageError, NotReady, NoResource)}
    raise kinds.get(code, BrimError)(message)


def _tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None  # it was opened as a pipe
    with contextlib.suppress(BrokenPipeError):  # it has died since: finish() finds out how
        child.stdin.write(line)
        child.stdin.flush()


def _end(children: Sequence[subprocess.Popen[str]]) -> None:
    """Kill what still runs, reap everything, close the pipes."""
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _last_line(file: Path) -> str:
    """The last thing that a child said, in one short line."""
    with contextlib.suppress(OSError):
        lines = file.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
        if lines:
            return clean(lines[-1])
    return "it said nothing"
