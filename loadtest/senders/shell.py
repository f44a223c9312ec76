"""What every sender process does around its sending: the handshake with its parent, its share of the load, its result.

Started as `python -m MODULE SPEC.json NUMBER PARENT_PID`; reads the spec and `start <monotonic ns>` on stdin; says
`ready` (or its error as JSON) on stdout; writes rows, samples and result-<worker>.json. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from brim import disk
from brim.errors import BrimError, NoResource, NotReady
from brim.offspring import die_with
from brim.records import Status
from loadtest.driver import LoadResult, LoadSpec, counts_of
from loadtest.senders import schedule
from loadtest.senders.dispatch import Dispatcher
from loadtest.senders.job import Job, load_pool, share
from loadtest.senders.tally import RowFile, result_file, row_file

FLUSH_S = 0.5
CATCH_UP_NS = 100_000_000  # at the end of an open loop, for what was due just before
CONNECT_WITHIN_S = 60.0  # for every user of this sender
START_WITHIN_S = 180.0  # for the parent to say start: the other senders must be ready too
NEVER_STARTED = "the parent never said start"
SPARE_FILES = 64  # open files beside one connection per user


class Sender(Protocol):
    """One process's way to send."""

    def connect(self) -> None:
        """Everything before the first request; NotReady or UsageError if there is no way to send it."""

    def send(self) -> None:
        """Wait for the start, load, drain, write the result."""


def run(argv: list[str], sender: Callable[[LoadSpec, int], Sender]) -> int:
    """Run one sender to its end; the exit code is 0 unless no result could be written."""
    spec_file, number, parent = Path(argv[0]), int(argv[1]), int(argv[2])
    die_with(parent)
    ready = False
    try:
        sending = sender(disk.load(LoadSpec, spec_file), number)
        sending.connect()
        ready = True
        print("ready", flush=True)
        sending.send()
        return 0
    except BrimError as error:
        if not ready:
            print(json.dumps({"exit_code": error.exit_code, "message": str(error)}), flush=True)
        with contextlib.suppress(OSError):  # on a full disk the log has no room either, and a buffer would fail again
            os.write(2, f"{error}\n".encode())
        return error.exit_code


def start_ns(line: str) -> int:
    """The common instant that the parent names on stdin."""
    word, _, number = line.partition(" ")
    if word != "start":
        raise NotReady("the parent closed the pipe before it said start")
    return int(number)


class Share:
    """One process's share of a load point: its job, its rows, and what it leaves behind."""

    def __init__(self, spec: LoadSpec, number: int) -> None:
        if spec.cpus:
            os.sched_setaffinity(0, spec.cpus)
        self.spec, self.worker = spec, spec.first_worker + number
        self.concurrency = share(spec.point.slots, spec.point.senders, number)
        _allow_files(self.concurrency + SPARE_FILES)
        self.payload, requests = load_pool(Path(spec.payload))
        self.rows = RowFile(row_file(Path(spec.rows), self.worker), self.worker, self.payload.items_per_request)
        self.job = Job(
            payload=self.payload,
            requests=requests,
            allowed=spec.allowed,
            users=self.concurrency if spec.arrivals is None else 1,  # in open loop most slots may have nothing to do
            senders=spec.point.senders,
            timeout_s=spec.timeout_s,
            samples=share(spec.samples, spec.point.senders, number),
            rows=self.rows,
            access=spec.access,
        )
        self.dispatcher: Dispatcher | None = None  # of an open loop
        if spec.arrivals is not None:
            arrivals = schedule.read(Path(spec.arrivals), number, spec.point.senders, spec.seconds)
            self.dispatcher = Dispatcher(self.job, arrivals, self.concurrency)
        self._start_ns, self._cpu_s = 0, 0.0

    def begin(self, start_ns: int) -> int:
        """The load begins (an open one at `start_ns`, which its arrivals count from); when it is to end by itself."""
        self._start_ns = start_ns if self.dispatcher else time.monotonic_ns()
        self._cpu_s = time.process_time()
        return self._start_ns + int(self.spec.seconds * 1e9)

    def over(self) -> bool:
        """Nothing is to be sent any more."""
        return self.job.stopping or (self.dispatcher is not None and self.dispatcher.done)

    def caught_up(self) -> bool:
        """Nothing is left that was due and could have been sent."""
        return self.job.stopping or self.dispatcher is None or not self.dispatcher.behind

    def flush(self) -> None:
        """Rows to the disk; a full one ends the load."""
        try:
            self.rows.flush()
        except NoResource as error:
            self.job.out_of_room(error)

    def write(self) -> None:
        """The last rows, the samples and result-<worker>.json."""
        end_ns, cpu_s, job = time.monotonic_ns(), time.process_time() - self._cpu_s, self.job
        try:
            self.rows.close()
        except NoResource as error:
            job.out_of_room(error)
        counts, folder = self.rows.counts, Path(self.spec.folder)
        result = LoadResult(
            workers=(self.worker,),
            start_ns=self._start_ns,
            end_ns=end_ns,
            **counts_of(counts),
            items_ok=counts[Status.OK] * self.payload.items_per_request,
            client_cpu_s=cpu_s,
            ended=job.ended,
            reason=job.reason,
            no_room=job.no_room,
            errors=dict(job.texts.counts),
            samples=job.samples.write(folder, self.worker),
            unsent=self.dispatcher.unsent(sum(counts)) if self.dispatcher else 0,
        )
        disk.save(result_file(folder, self.worker), result)


def _allow_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise NoResource(
            f"{needed} open files are needed, the limit is {hard}; lower the concurrency or raise ulimit -n"
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
