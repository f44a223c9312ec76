"""Load by the real perf_analyzer: the second, independent generator of Brim's figures.

Writes requests/<worker>.bin like every sender, and into the load's folder its CSV, the end of its output and
result.json. Everything sent is in the rows, warm-up and drain included.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from functools import cache
from pathlib import Path
from typing import IO, Literal

from brim import disk, guard, layout
from brim.errors import BrimError, NoResource, NotReady
from brim.records import Status
from loadtest import perf_analyzer_command as command
from loadtest import perf_analyzer_memory as memory
from loadtest import perf_analyzer_output as output
from loadtest import prepared, supervise
from loadtest.control import control
from loadtest.driver import LoadResult, LoadSpec, counts_of
from loadtest.sender_driver import recovered
from loadtest.senders.tally import RowFile, Texts, row_file

#: It reads its input data (at most 340 MB of JSON, 2 to 3 s) and asks for the model's metadata before it sends.
START_UP_S = 20.0
#: Its windows stretch on a busy machine: 2.40 s instead of 1.20 s was seen.
OVERRUN = 2.0
POLL_S = 0.1
#: A request may just be on its way from perf_analyzer to the trace when the order to stop arrives.
STOPPING_S = 0.25
FLUSH_NS = 1_000_000_000
#: libcurl's trace is 1.1 KB per request; its file is emptied when it is this long, the end of it tells of errors.
STDERR_BYTES = 4 * 2**20
LAST_BYTES = 2**14
STDERR = "perf_analyzer.stderr"
#: The end of all that it said.
LOG = "perf_analyzer.log"


def available(binary: Path | None = None, libraries: Path | None = None) -> str | None:
    """Why perf_analyzer cannot run on this machine, in one line, or None if it can; asked once per process."""
    return _ask(binary or layout.perf_analyzer(), libraries or layout.perf_analyzer_libraries())


@cache
def _ask(binary: Path, libraries: Path) -> str | None:
    if not binary.is_file():
        return f"perf_analyzer is not at {binary}; `make setup` fetches it"
    try:
        asked = subprocess.run(
            [binary, "--version"], env=command.environment(libraries), capture_output=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{binary} --version did not answer within 10 s"
    except OSError as error:
        return f"{binary} does not run on this machine: {error.strerror}"
    if asked.returncode != 0:
        said = " | ".join(output.words(asked.stderr)[-1:]) or f"exit {asked.returncode}"
        return f"{binary} does not run on this machine: {said}"
    return None


class PerfAnalyzerDriver:
    """One perf_analyzer process per load point; `batched` (None: the server is asked) = the model takes a batch."""

    generator: Literal["locust", "perf_analyzer", "loadgen"] = "perf_analyzer"
    ends_itself = True

    def __init__(
        self, *, binary: Path | None = None, libraries: Path | None = None, batched: bool | None = None
    ) -> None:
        self._binary = binary or layout.perf_analyzer()
        self._libraries = libraries or layout.perf_analyzer_libraries()
        self._batched = batched

    def start(self, spec: LoadSpec, folder: Path) -> RunningPerfAnalyzer:
        """Begin sending; UsageError if this load is not for perf_analyzer, NotReady if it does not run here."""
        address = command.check(spec)
        if (why := available(self._binary, self._libraries)) is not None:
            raise NotReady(why)
        if spec.point.transport == "shared_memory":
            memory.require_alone(spec)
        disk.make_folder(folder)
        data = command.write_input_data(Path(spec.payload), lambda: self._takes_a_batch(spec))
        csv_file(folder).unlink(missing_ok=True)  # one of an earlier load would pass for this one's
        told = command.arguments(spec, address, data, csv_file(folder))
        return RunningPerfAnalyzer(spec, folder, [str(self._binary), *told], command.environment(self._libraries))

    def _takes_a_batch(self, spec: LoadSpec) -> bool:
        if self._batched is not None:
            return self._batched
        config = control(spec.url, spec.allowed, spec.access).model_config(spec.model, spec.version)
        return int(config.get("max_batch_size", 0)) > 0


def csv_file(folder: Path) -> Path:
    return folder / "perf_analyzer.csv"


class RunningPerfAnalyzer:
    """A perf_analyzer that is sending, and the thread that stamps its trace and ends it when it overruns."""

    def __init__(self, spec: LoadSpec, folder: Path, program: list[str], env: dict[str, str]) -> None:
        self._spec, self._folder = spec, folder
        self._trace, self._texts = output.Trace(spec.point.protocol), Texts()
        self._done_ns = array.array("q")  # completion instants of answered requests, in order
        self._most_in_flight = 0
        self._stopped, self._killed, self._broken = False, "", ""
        self._drained_s = 0.0  # once told to stop, nothing in flight counts as drained from here on
        self._no_room = False
        self._reader_cpu_s = 0.0
        self._lock = threading.Lock()  # between a signal and the reaping that makes the pid invalid
        self._result: LoadResult | None = None
        rows = row_file(Path(spec.rows), spec.first_worker)
        self._rows = RowFile(rows, spec.first_worker, spec.point.items_per_request)
        self._stderr = self._open_stderr()
        self._start_ns = time.monotonic_ns()
        self._bound_s = START_UP_S + OVERRUN * spec.seconds + spec.drain_s
        self._deadline_s = time.monotonic() + self._bound_s
        self._claimed = _claimed(spec)
        try:
            self._process = self._spawn(program, env)
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._watch, name="perf_analyzer", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> tuple[int, ...]:
        return (self._process.pid,)

    def running(self) -> bool:
        """False once perf_analyzer has ended and its rows are written."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """SIGINT, once: it sends no more, but sleeps until its window is over; the watching thread ends the sleep."""
        with self._lock:
            if self._stopped or self._process.returncode is not None:
                return
            self._drained_s = time.monotonic() + STOPPING_S
            self._deadline_s = min(self._deadline_s, time.monotonic() + self._spec.drain_s)
            self._stopped = True  # last: the watching thread reads the two above once it sees this
            os.kill(self._process.pid, signal.SIGINT)

    def finish(self) -> LoadResult:
        """Wait (the watching thread bounds it) and give the result."""
        self._thread.join()
        assert self._result is not None  # the thread sets it whatever happens
        return self._result

    def _open_stderr(self) -> IO[bytes]:
        file = self._folder / STDERR
        with disk.told(file):
            return file.open("a+b", buffering=0)  # append: what is written after a cut stands at its start

    def _spawn(self, program: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            supervise.command(program, self._spec.cpus),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=env,
            pass_fds=() if self._claimed is None else (self._claimed.handle,),
            start_new_session=True,  # a Ctrl-C at the terminal is Brim's to pass on, once
        )

    # ---- the watching thread

    def _watch(self) -> None:
        """Until perf_analyzer has ended; every way out reaps it and leaves a result."""
        try:
            self._follow()
        except Exception as error:  # a full disk, say: end the load, tell why
            self._broken, self._no_room = _told(error), isinstance(error, NoResource)
            self._kill("could not be followed")
        exit_code, cpu_s = self._reap()
        self._release()
        self._reader_cpu_s = time.thread_time()
        try:
            self._result = self._conclude(exit_code, cpu_s)
        except Exception as error:  # a thread has no caller to raise to
            self._result = self._from_rows(_told(error))
        with contextlib.suppress(BrimError):  # the result is in memory all the same
            disk.save(self._folder / "result.json", self._result)

    def _follow(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        poll, flushed_ns = select.poll(), time.monotonic_ns()
        poll.register(stdout, select.POLLIN)
        while True:
            ready = poll.poll(POLL_S * 1000)
            now_ns = time.monotonic_ns()
            if ready:
                said = os.read(stdout.fileno(), 2**16)
                if not said:
                    return
                self._take(said, now_ns)
            self._guard_time()
            if now_ns - flushed_ns > FLUSH_NS:
                flushed_ns = now_ns
                self._rows.flush()
                if os.fstat(self._stderr.fileno()).st_size > STDERR_BYTES:
                    os.ftruncate(self._stderr.fileno(), 0)

    def _take(self, said: bytes, now_ns: int) -> None:
        self._most_in_flight = max(self._most_in_flight, len(self._trace.in_flight))
        for sent_ns in self._trace.feed(said, now_ns):
            self._rows.add(sent_ns, sent_ns, now_ns, Status.OK)
            self._done_ns.append(now_ns)

    def _guard_time(self) -> None:
        now_s = time.monotonic()
        if self._stopped:
            if now_s > self._drained_s and (not self._trace.in_flight or now_s > self._deadline_s):
                self._kill("")
        elif now_s > self._deadline_s:
            self._kill(f"did not end within {self._bound_s:g} s")

    def _kill(self, why: str) -> None:
        with self._lock:
            self._killed = why
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> tuple[int, float]:
        """Exit code and processor seconds, once it has ended (a closed standard output is not yet an end)."""
        while True:
            with self._lock:
                pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
                if pid:
                    self._process.returncode = os.waitstatus_to_exitcode(status)
                    break
            self._guard_time()
            time.sleep(0.005)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.returncode, used.ru_utime + used.ru_stime

    def _conclude(self, exit_code: int, cpu_s: float) -> LoadResult:
        end_ns = time.monotonic_ns()
        stderr = self._last_stderr()
        ended, reason = self._how_it_ended(exit_code, output.words(stderr))
        self._close_rows(stderr, end_ns)
        counts = self._rows.counts
        return LoadResult(
            workers=(self._spec.first_worker,),
            start_ns=self._trace.first_sent_ns or self._start_ns,
            end_ns=end_ns,
            **counts_of(counts),
            items_ok=counts[Status.OK] * self._spec.point.items_per_request,
            client_cpu_s=cpu_s + self._reader_cpu_s,
            ended=ended,
            errors=self._texts.counts,
            reason=reason,
            no_room=self._no_room,
        )

    def _from_rows(self, reason: str) -> LoadResult:
        self._stderr.close()
        with contextlib.suppress(BrimError, ValueError):  # a full disk; or they are closed already
            self._rows.close()
        return recovered(
            row_file(Path(self._spec.rows), self._spec.first_worker), self._spec.first_worker,
            start_ns=self._start_ns, end_ns=time.monotonic_ns(), reason=reason, no_room=self._no_room,
        )  # fmt: skip

    def _release(self) -> None:
        if self._claimed is not None:
            self._claimed.release()

    def _how_it_ended(self, exit_code: int, said: list[str]) -> tuple[output.Ended, str]:
        rate = self._csv_rate()
        ended, reason = output.outcome(
            exit_code=exit_code, stopped=self._stopped, killed=self._killed, rate=rate, answered=len(self._done_ns),
            said=said,
        )  # fmt: skip
        if ended == "finished" and rate is not None:
            return ended, self._disagreement(rate) or ""
        if ended != "stopped":
            for line in said[-3:]:
                self._texts.add(line)
        if ended == "crashed" and not self._broken and not self._server_answers():
            ended = "server_lost"
        return ended, self._broken or reason

    def _close_rows(self, stderr: bytes, end_ns: int) -> None:
        rows = output.left_over(
            self._trace.in_flight.values(), failed=output.failed_requests(stderr), end_ns=end_ns,
            timeout_ns=round(self._spec.timeout_s * 1e9),
        )  # fmt: skip
        try:
            for sent_ns, done_ns, status in rows:
                self._rows.add(sent_ns, sent_ns, done_ns, status)
            self._rows.close()
            said = output.words(stderr) + self._trace.tail[-LAST_BYTES:].decode("utf-8", "replace").splitlines()
            disk.save_text(self._folder / LOG, "\n".join(said) + "\n")
        except NoResource as error:
            self._no_room = True
            self._texts.add(str(error))

    def _last_stderr(self) -> bytes:
        """The end of what it said on stderr, from the start of a line; the file itself goes."""
        with self._stderr as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LAST_BYTES))
            last = stream.read()
        (self._folder / STDERR).unlink(missing_ok=True)
        return last if size <= LAST_BYTES else last.partition(b"\n")[2]

    def _csv_rate(self) -> float | None:
        try:
            text = csv_file(self._folder).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        return output.csv_rate(text, self._spec.point)

    def _disagreement(self, rate: float) -> str | None:
        return output.disagreement(
            self._done_ns, start_ns=self._trace.first_sent_ns or self._start_ns,
            requests=output.reported_requests(self._trace.tail), items=self._spec.point.items_per_request,
            in_flight=self._spec.point.concurrency or self._most_in_flight, rate=rate,
        )  # fmt: skip

    def _server_answers(self) -> bool:
        endpoint = guard.parse_url(self._spec.url)
        try:
            guard.connect(endpoint.host, endpoint.port, self._spec.allowed, timeout_s=1.0).close()
        except BrimError:
            return False
        return True


def _claimed(spec: LoadSpec) -> memory.Claimed | None:
    """What it may leave in shared memory, written down before it starts; None where it uses none."""
    if spec.point.transport != "shared_memory":
        return None
    return memory.Claimed(spec.url, spec.access, prepared.load(Path(spec.payload)))


def _told(error: Exception) -> str:
    """What went wrong, in one line."""
    return str(error) if isinstance(error, (BrimError, OSError)) else f"bug: {error!r}"
