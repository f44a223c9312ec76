"""One MLPerf LoadGen in a child process: it issues samples, and a pool of threads sends each as one prepared request.

Started and answered like every sender process (loadtest.senders.shell). Reads loadgen.json; writes rows, its result,
and LoadGen's own logs into the load's folder. In Server an intended time is the instant at which LoadGen issued the
query; it does not tell the scheduled one, which its own latencies count from.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlperf_loadgen as mlperf

from brim import disk, guard
from brim.errors import BrimError, NotReady
from brim.records import Status
from loadtest import loadgen
from loadtest.driver import LoadSpec
from loadtest.loadgen import Settings
from loadtest.senders import shell
from loadtest.senders.answers import Garbage, clean, read_head
from loadtest.senders.job import Job

CHUNK_BYTES = 2**16
POLL_S = 0.05


class Line:
    """One connection of the pool; a request at a time, blocking its own thread only."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._socket: socket.socket | None = None

    def connect(self) -> socket.socket:
        """The open connection; NotReady if there is none to be had."""
        if self._socket is None:
            place = self._job.endpoint
            self._socket = guard.connect(place.host, place.port, self._job.allowed, timeout_s=self._job.timeout_s)
        return self._socket

    def exchange(self, request: bytes) -> tuple[Status, str]:
        """Send one request and judge its answer: how it ended, and why if not well."""
        deadline_s = time.monotonic() + self._job.timeout_s
        try:
            sock = self.connect()
            sock.settimeout(self._job.timeout_s)
            sock.sendall(request)
            return self._answer(sock, deadline_s)
        except TimeoutError:
            self.close()
            return Status.TIMED_OUT, f"no answer within {self._job.timeout_s:g} s"
        except (OSError, BrimError, Garbage) as error:
            self.close()
            return Status.FAILED, clean(f"connection: {error}")

    def _answer(self, sock: socket.socket, deadline_s: float) -> tuple[Status, str]:
        data, head = bytearray(), None
        while head is None or len(data) < head.total:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            sock.settimeout(left_s)
            more = sock.recv(CHUNK_BYTES)
            if not more:
                raise Garbage("closed in the middle of an answer")
            data += more
            head = head or read_head(data)
        if head.close:
            self.close()
        return self._job.judge.verdict(head, data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class LoadGenSender:
    """The one process of a load point."""

    def __init__(self, spec: LoadSpec, number: int) -> None:
        self._spec, self._share = spec, shell.Share(spec, number)
        self._settings = disk.load(Settings, loadgen.settings_file(Path(spec.folder)))
        self._issued: queue.SimpleQueue[tuple[int, int, int]] = queue.SimpleQueue()  # id, index, when
        self._recording = threading.Lock()  # rows are packed into one buffer
        self._in_flight: dict[int, tuple[int, int]] = {}  # sample -> intended_ns, sent_ns
        self._lines = [Line(self._share.job) for _ in range(self._share.concurrency)]

    def connect(self) -> None:
        """The first connection; NotReady if there is none."""
        signal.signal(signal.SIGTERM, lambda *_: self._share.job.stop("stopped"))
        self._lines[0].connect()

    def send(self) -> None:
        """From the common instant until LoadGen has what it wants, or until told to stop; then the result."""
        if not select.select([sys.stdin], [], [], shell.START_WITHIN_S)[0]:
            raise NotReady(shell.NEVER_STARTED)
        start_ns = shell.start_ns(sys.stdin.readline())
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        for line in self._lines:
            threading.Thread(target=self._work, args=(line,), daemon=True).start()
        self._share.begin(start_ns)
        test = threading.Thread(target=self._test, daemon=True)  # a signal's handler runs in this thread, not in that
        test.start()
        self._wait(test)
        self._share.write()
        if test.is_alive():  # nothing ends a test of LoadGen early
            os._exit(0)

    def _wait(self, test: threading.Thread) -> None:
        job, flushed_s = self._share.job, time.monotonic()
        while test.is_alive() and not job.stopping:
            test.join(POLL_S)
            if time.monotonic() - flushed_s > shell.FLUSH_S:
                flushed_s = time.monotonic()
                with self._recording:
                    self._share.flush()
        deadline_s = time.monotonic() + self._spec.drain_s
        while self._in_flight and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        with self._recording:
            while self._in_flight:
                job.record(*self._in_flight.popitem()[1], time.monotonic_ns(), Status.CANCELLED, "")

    def _test(self) -> None:
        with self._share.job.watched():
            sut = mlperf.ConstructSUT(self._issue, lambda: None)
            pool = len(self._share.job.requests)
            library = mlperf.ConstructQSL(pool, pool, lambda samples: None, lambda samples: None)
            mlperf.StartTestWithLogSettings(sut, library, self._asked(), _logs(Path(self._spec.folder)), "")
            mlperf.DestroyQSL(library)
            mlperf.DestroySUT(sut)
            self._share.job.stop("finished", _told(Path(self._spec.folder)))

    def _asked(self) -> Any:
        """The scenario as LoadGen's settings, with minimum counts of our own."""
        point, asked = self._spec.point, mlperf.TestSettings()
        asked.mode = mlperf.TestMode.PerformanceOnly
        asked.min_duration_ms = round(self._spec.seconds * 1e3)
        if point.mode == "closed":
            asked.scenario = mlperf.TestScenario.Offline
            asked.offline_expected_qps, asked.min_query_count = self._settings.expected_per_s, 1
        else:
            asked.scenario = mlperf.TestScenario.Server
            asked.server_target_qps, asked.min_query_count = point.rate_per_s, self._settings.min_queries
            asked.server_target_latency_ns = round(self._settings.latency_ms * 1e6)
            asked.schedule_rng_seed = point.seed or 0
        return asked

    def _issue(self, samples: list[Any]) -> None:
        """LoadGen's own thread calls this: hand over, and return at once."""
        now_ns = time.monotonic_ns()
        for sample in samples:
            self._issued.put((sample.id, sample.index, now_ns))

    def _work(self, line: Line) -> None:
        """Send whatever is issued, one after the other."""
        job, closed = self._share.job, self._spec.point.mode == "closed"
        with job.watched():
            while True:
                sample, index, issued_ns = self._issued.get()
                if job.stopping:
                    return
                sent_ns = time.monotonic_ns()
                self._in_flight[sample] = (sent_ns if closed else issued_ns, sent_ns)
                status, text = line.exchange(job.requests[index])
                done_ns = time.monotonic_ns()
                with self._recording:
                    if sample in self._in_flight:  # else it was given up, and is down as cancelled
                        job.record(*self._in_flight.pop(sample), done_ns, status, text)
                mlperf.QuerySamplesComplete([mlperf.QuerySampleResponse(sample, 0, 0)])


def _logs(folder: Path) -> Any:
    """LoadGen's own logs, in the load's folder, without its trace."""
    output, logs = mlperf.LogOutputSettings(), mlperf.LogSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs.log_output, logs.enable_trace = output, False
    return logs


def _told(folder: Path) -> str:
    """Its verdict, in our words."""
    summary = None
    with contextlib.suppress(OSError):
        summary = loadgen.read_summary((folder / loadgen.SUMMARY).read_text(encoding="utf-8", errors="replace"))
    return loadgen.words(summary) if summary else f"LoadGen left no summary in {folder}"


if __name__ == "__main__":
    sys.exit(shell.run(sys.argv[1:], LoadGenSender))
