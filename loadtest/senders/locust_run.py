"""The child process of the Locust driver: `python -m loadtest.senders.locust_run SPEC.json NUMBER PARENT_PID`.

Reads the spec and `start <monotonic ns>` on stdin; says `ready` (or its error as JSON) on stdout; writes rows, samples
and result-<worker>.json. SIGTERM: send no more, drain, write. It ends when its parent does, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders import locust_http  # isort: skip
import gevent
import gevent.event
import gevent.socket
from locust.env import Environment

from brim import disk
from brim.errors import BrimError, NoResource, NotReady
from brim.offspring import die_with
from brim.records import Status
from loadtest.driver import LoadResult, LoadSpec, counts_of
from loadtest.senders.job import Job, load_pool, share
from loadtest.senders.tally import RowFile, result_file, row_file

FLUSH_S = 0.5
CONNECT_WITHIN_S = 60.0  # for every user of this sender
START_WITHIN_S = 180.0  # for the parent to say start: the other senders must be ready too
SPARE_FILES = 64  # open files beside one connection per user


def main(argv: list[str]) -> int:
    """Run one sender to its end; the exit code is 0 unless no result could be written."""
    spec_file, number, parent = Path(argv[0]), int(argv[1]), int(argv[2])
    die_with(parent)
    ready = False
    try:
        spec = disk.load(LoadSpec, spec_file)
        sender = Sender(spec, number)
        sender.spawn()
        ready = True
        print("ready", flush=True)
        sender.send(_start_ns())
        return 0
    except BrimError as error:
        if not ready:
            print(json.dumps({"exit_code": error.exit_code, "message": str(error)}), flush=True)
        with contextlib.suppress(OSError):  # on a full disk the log has no room either, and a buffer would fail again
            os.write(2, f"{error}\n".encode())
        return error.exit_code


class Sender:
    """One process's share of a load point."""

    def __init__(self, spec: LoadSpec, number: int) -> None:
        if spec.cpus:
            os.sched_setaffinity(0, spec.cpus)
        self.spec, self.worker = spec, spec.first_worker + number
        self.concurrency = share(spec.point.concurrency or 1, spec.point.senders, number)
        _allow_files(self.concurrency + SPARE_FILES)
        payload, requests = load_pool(Path(spec.payload))
        self.items = payload.items_per_request
        self.rows = RowFile(row_file(Path(spec.rows), self.worker), self.worker, self.items)
        self.job = Job(
            payload=payload,
            requests=requests,
            allowed=spec.allowed,
            users=self.concurrency,
            senders=spec.point.senders,
            timeout_s=spec.timeout_s,
            samples=share(spec.samples, spec.point.senders, number),
            rows=self.rows,
        )
        self.environment = Environment(user_classes=[locust_http.KServeUser], host=payload.url)
        self.environment.brim_job = self.job
        self.environment.brim_released = gevent.event.Event()
        self.environment.brim_waiting = 0
        self.runner = self.environment.create_local_runner()

    def spawn(self) -> None:
        """Start every user and wait until each has its connection; NotReady or UsageError if one gets none."""
        gevent.signal_handler(signal.SIGTERM, self.job.stop, "stopped")
        self.runner.start(self.concurrency, spawn_rate=self.concurrency)
        deadline = time.monotonic() + CONNECT_WITHIN_S
        while self.environment.brim_waiting < self.concurrency and self.job.refusal is None:
            if time.monotonic() > deadline:
                raise NotReady(f"{self.spec.url}: {self.concurrency} connections took over {CONNECT_WITHIN_S:g} s")
            gevent.sleep(0.005)
        if self.job.refusal is not None:
            raise self.job.refusal
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it between two requests

    def send(self, start_ns: int) -> None:
        """Load from the common instant until told to stop or time is over, drain, and write the result."""
        gevent.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        start_ns, cpu_s = time.monotonic_ns(), time.process_time()
        keepers = [gevent.spawn(locust_http.enforce_deadlines, self.job), gevent.spawn(self._keep_flushing)]
        self.environment.brim_released.set()
        self._until(lambda: self.job.stopping, start_ns + int(self.spec.seconds * 1e9))
        self.job.stop("finished")
        self._until(lambda: not self.job.in_flight, time.monotonic_ns() + int(self.spec.drain_s * 1e9))
        self.runner.quit()  # kills what is still in flight, which each user takes down as cancelled
        gevent.killall(keepers)
        end_ns, cpu_s = time.monotonic_ns(), time.process_time() - cpu_s
        try:
            self.rows.close()
        except NoResource as error:
            self.job.out_of_room(error)
            self.job.ended, self.job.reason = "crashed", str(error)
        self._write(start_ns, end_ns, cpu_s)

    def _until(self, over: Callable[[], bool], deadline_ns: int) -> None:
        while not over() and (left := deadline_ns - time.monotonic_ns()) > 0:
            gevent.sleep(min(0.01, left / 1e9))

    def _keep_flushing(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            try:
                self.rows.flush()
            except NoResource as error:
                self.job.out_of_room(error)

    def _write(self, start_ns: int, end_ns: int, cpu_s: float) -> None:
        """result-<worker>.json."""
        counts, folder = self.rows.counts, Path(self.spec.folder)
        samples = self.job.samples.write(folder, self.worker)
        result = LoadResult(
            workers=(self.worker,),
            start_ns=start_ns,
            end_ns=end_ns,
            **counts_of(counts),
            items_ok=counts[Status.OK] * self.items,
            client_cpu_s=cpu_s,
            ended=self.job.ended,
            reason=self.job.reason,
            no_room=self.job.no_room,
            errors=dict(self.job.texts.counts),
            samples=samples,
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


def _start_ns() -> int:
    """The common instant that the parent names on stdin."""
    gevent.socket.wait_read(0, timeout=START_WITHIN_S, timeout_exc=NotReady("the parent never said start"))
    word, _, number = sys.stdin.readline().partition(" ")
    if word != "start":
        raise NotReady("the parent closed the pipe before it said start")
    return int(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
