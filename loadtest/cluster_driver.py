"""Starts load on several hosts: a child process is the master of a Locust cluster, and each load host runs a worker.

The master serves a whole measurement; it writes the files of each load, rows in this host's time included. This
process speaks with it in JSON lines and never imports Locust.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from brim import codec, disk, guard, layout
from brim.errors import BrimError, NoResource, NotReady, UsageError, WorkerLost
from brim.offspring import undisturbed
from brim.records import TargetLimit
from loadtest.cluster_clock import Clock, drift
from loadtest.cluster_wire import MasterOrder, Place, WorkerOrder, WorkerPart, is_every_network
from loadtest.driver import LoadResult, LoadSpec, RunningLoad
from loadtest.sender_driver import merged, recovered
from loadtest.senders.answers import clean
from loadtest.senders.tally import result_file, row_file

MASTER_WITHIN_S = 60.0  # importing Locust takes a second or two, on a busy machine many
START_WITHIN_S = 300.0  # requests to every worker, and connections from there
TRANSFER_S = 75.0  # beyond the load's own bounds the master gets so long to hear the last worker
END_WITHIN_S = 5.0
ENDS = ("ended", "refused")  # what the master says at the end of a load
#: A load host with less room than this may be what limits.
HOST_BUSY = 0.9


@contextlib.contextmanager
def cluster(place: Place, workers: int, within_s: float, *, tell: Callable[[str], None]) -> Iterator[ClusterDriver]:
    """A driver whose load comes from `workers` load hosts, once all of them have come.

    NotReady if they do not come in time, UsageError if one cannot work with us, NoResource if nobody can listen at
    `place`. `tell` gets one line for each worker that joins or is refused, and for each clock at the end.
    """
    order = MasterOrder(host=numeric(place), port=place.port, workers=workers, within_s=within_s)
    if not _is_loopback(place):
        tell(f"listening at {place} for workers: whoever reaches that port can join, and nothing there is encrypted")
    with tempfile.TemporaryFile() as log:  # the master's own words, for the line that tells how it died
        master = Master(_spawn_master(order, log), log, tell)
        try:
            driver = ClusterDriver(master, place, workers)
            driver.gather(within_s)
            yield driver
            driver.tell_drifts()
        finally:
            with undisturbed():
                master.end()


def worker_command(place: Place, within_s: float, folder: Path, allowed: Mapping[str, TargetLimit]) -> list[str]:
    """What a load host runs as its worker: `os.execv(command[0], command)` with `worker_environment`."""
    order = WorkerOrder(
        host=numeric(place), port=place.port, within_s=within_s, folder=str(folder.resolve()), allowed=allowed
    )
    # -P: the user's folder is not where modules come from
    return [sys.executable, "-P", "-m", "loadtest.senders.cluster_worker", codec.to_json(order)]


def worker_environment() -> dict[str, str]:
    """The environment of the cluster's processes: this checkout's modules first."""
    paths = [str(layout.CHECKOUT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def numeric(place: Place) -> str:
    """The address that the user's name stands for; NotReady if for none, UsageError if for every network."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotReady(f"{place.host}: the name does not resolve ({error}); check the address") from None
    address = str(found[0][4][0])
    if is_every_network(address):
        raise UsageError(f"{place} is every network of this host; name the one address that is meant")
    return address


def _is_loopback(place: Place) -> bool:
    try:
        return all(address.loopback for address in guard.judge(place.host, place.port, {}))
    except UsageError:  # not loopback, which for the master's own address is no fault
        return False


class Master:
    """The master's process, and what is said to it and by it."""

    def __init__(self, child: subprocess.Popen[bytes], log: IO[bytes], tell: Callable[[str], None]) -> None:
        self._child, self._log, self.tell = child, log, tell
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    def say(self, do: str, **words: Any) -> None:
        assert self._child.stdin is not None  # it was opened as a pipe
        with contextlib.suppress(BrokenPipeError):  # it has died: who listens next finds out how
            self._child.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
            self._child.stdin.flush()

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """The next event, or None if nothing was said in time; an `error` is raised, Lost if the master has died."""
        deadline = time.monotonic() + within_s
        while (line := self._line(deadline - time.monotonic())) is not None:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "note":
                self.tell(event["message"])
                continue
            if event["event"] == "error":
                _raise(event)
            return event
        return None

    def _line(self, within_s: float) -> bytes | None:
        assert self._child.stdout is not None  # it was opened as a pipe
        deadline = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                data = os.read(self._child.stdout.fileno(), 2**16)
                if not data:
                    self._died()
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self) -> NoReturn:
        self._child.wait()
        self._log.seek(0)
        said = self._log.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise WorkerLost(f"the cluster's master ended with code {self._child.returncode}: {clean(said[-1])}")

    def end(self) -> None:
        """Let it say goodbye to the workers; kill it if it does not end."""
        self.say("quit")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(END_WITHIN_S)
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class ClusterDriver:
    """Drives closed-loop HTTP load from the workers of a cluster; `senders` of a load point is how many of them."""

    generator: Literal["locust", "perf_analyzer", "loadgen"] = "locust"
    ends_itself = False

    def __init__(self, master: Master, place: Place, workers: int) -> None:
        self._master, self._place, self.workers = master, place, workers
        self._clocks: dict[str, tuple[Clock, Clock]] = {}  # name -> its first and its last measurement
        self._awaited = False  # the master has not told yet what became of the load before

    @property
    def master_pid(self) -> int:
        """The process that the workers talk with."""
        return self._master.pid

    def gather(self, within_s: float) -> None:
        """Wait until every worker is here."""
        self._master.tell(f"waiting up to {within_s:g} s for {self.workers} worker(s) at {self._place}")
        deadline = time.monotonic() + within_s + MASTER_WITHIN_S
        while True:
            event = self._master.hear(deadline - time.monotonic())
            if event is None:
                raise NotReady(f"the cluster's master did not begin within {MASTER_WITHIN_S:g} s; is the machine busy?")
            if event["event"] == "ready":
                return
            clock = codec.build(Clock, event["clock"], where="the cluster's master")
            self._clocks[event["name"]] = (clock, clock)
            self._master.tell(f"worker {event['name']}: clock {clock}")

    def start(self, spec: LoadSpec, folder: Path) -> RunningLoad:
        """Give every worker its share, wait until all have their connections, and release them together."""
        refuse(spec, self._place, self.workers)
        if self._awaited:  # what comes next from the master may be about that load
            raise WorkerLost("the cluster broke: how its last load ended was never told; start the measurement again")
        spec_file = disk.save(folder / "spec.json", spec)
        self._awaited = True
        self._master.say("load", spec=str(spec_file))
        event = self._master.hear(START_WITHIN_S)
        if event is None:
            raise WorkerLost(f"the load hosts were not ready within {START_WITHIN_S:g} s")
        if event["event"] == "refused":
            self._awaited = False
            _raise(event)
        _expect(event, "started")
        return ClusterLoad(self._master, spec, folder, self._ended)

    def tell_drifts(self) -> None:
        """How far each worker's clock went since it joined."""
        for name, (first, last) in self._clocks.items():
            if last is not first:
                self._master.tell(f"worker {name}: its clock moved {drift(first, last)}")

    def _ended(self, shares: Sequence[WorkerPart], told: bool) -> None:
        """A load is over; `told`: by the master."""
        self._awaited = not told
        for share in shares:
            self._tell_share(share)

    def _tell_share(self, share: WorkerPart) -> None:
        if share.after is not None and share.name in self._clocks:
            self._clocks[share.name] = (self._clocks[share.name][0], share.after)
        if share.host_busy is not None and share.host_busy > HOST_BUSY:
            self._master.tell(f"worker {share.name}: its host was {share.host_busy:.0%} busy and may be what limits")


class ClusterLoad:
    """A load that the workers send."""

    def __init__(
        self, master: Master, spec: LoadSpec, folder: Path, ended: Callable[[Sequence[WorkerPart], bool], None]
    ) -> None:
        self._master, self._spec, self._folder, self._tell_end = master, spec, folder, ended
        self._workers = range(spec.first_worker, spec.first_worker + spec.point.senders)
        self._started_ns = time.monotonic_ns()
        self._deadline = time.monotonic() + spec.seconds + spec.drain_s + TRANSFER_S
        self._stopped = False
        self._end: dict[str, Any] | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """None on this host; each worker's processor time is in its result."""
        return ()

    def running(self) -> bool:
        """False once every worker has delivered, or was lost."""
        return not self._over(0.0)

    def stop(self) -> None:
        """Ask every worker to stop and drain."""
        if not self._stopped:
            self._stopped = True
            self._deadline = min(self._deadline, time.monotonic() + self._spec.drain_s + TRANSFER_S)
            self._master.say("stop")

    def finish(self) -> LoadResult:
        """Wait for the last worker's files, and sum up."""
        while not self._over(0.25) and time.monotonic() < self._deadline:
            pass
        total = merged([self._part(worker) for worker in self._workers])
        shares: list[WorkerPart] = []
        with contextlib.suppress(BrimError, OSError):  # what they say is no part of the figure
            shares = disk.load_lines(WorkerPart, self._folder / "cluster.jsonl")
        self._tell_end(shares, self._end is not None and self._end["event"] in ENDS)
        busy = [share.host_busy for share in shares if share.host_busy is not None]
        total = replace(total, hosts_busy=max(busy, default=None))
        with contextlib.suppress(BrimError):  # a full disk is in the result already
            disk.save(self._folder / "result.json", total)
        return total

    def _over(self, within_s: float) -> bool:
        if self._end is None:
            try:
                event = self._master.hear(within_s)
                self._end = event if event is None else _expect(event, *ENDS)
            except BrimError as error:  # the master is gone, and with it what it had not written
                self._end = {"event": "error", "message": str(error)}
        return self._end is not None

    def _part(self, worker: int) -> LoadResult:
        """One worker's own result, or what its rows say if something kept it from being whole."""
        end = self._end or {"event": "error", "message": "the cluster's master did not hear every worker in time"}
        failure = end["failures"].get(str(worker)) if end["event"] == "ended" else end["message"]
        if failure is None:
            try:
                return disk.load(LoadResult, result_file(self._folder, worker))
            except BrimError as error:
                failure = str(error)
        return recovered(
            row_file(Path(self._spec.rows), worker),
            worker,
            start_ns=self._started_ns,
            end_ns=time.monotonic_ns(),
            reason=failure,
            no_room=bool(end.get("no_room")) or end.get("exit_code") == NoResource.exit_code,
        )


def refuse(spec: LoadSpec, place: Place, workers: int) -> None:
    """UsageError for what a cluster does not send."""
    point, access = spec.point, spec.access
    if point.mode != "closed" or point.sender != "locust_http" or point.transport != "wire":
        raise UsageError("--master drives HTTP over the wire in a closed loop only; leave out what asks for more")
    if access.headers or access.tls_ca or access.tls_cert or spec.url.startswith("https:"):
        raise UsageError("--master: files of TLS and headers lie on this host, and the workers cannot read them yet")
    if point.senders > workers:
        raise UsageError(f"{point.senders} senders were asked for, and {workers} workers are here; --expect-workers")
    here = guard.parse_url(spec.url).host
    if not _is_loopback(place) and _is_loopback(Place(host=here)):
        raise UsageError(
            f"{spec.url}: on each load host {here} is that host itself; name the server by an address they reach"
        )


def _spawn_master(order: MasterOrder, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C in the terminal reaches only this process, which then ends it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "loadtest.senders.cluster_master", codec.to_json(order), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=worker_environment(),
        start_new_session=True,
    )


def _expect(event: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """The event, if it is of one of these kinds; WorkerLost for one that belongs elsewhere."""
    if event["event"] not in kinds:
        raise WorkerLost(f"the cluster's master said {event['event']!r} where {' or '.join(kinds)} was due")
    return event


def _raise(event: Mapping[str, Any]) -> NoReturn:
    """What the master reports, as an error of its own kind."""
    kinds: dict[int, type[BrimError]] = {k.exit_code: k for k in (UsageError, NotReady, WorkerLost, NoResource)}
    raise kinds.get(int(event["exit_code"]), BrimError)(event["message"])
