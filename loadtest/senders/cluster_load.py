"""One load of a cluster as its master sees it: what each worker is told, and what arrives from it.

Reads the payload; writes what the workers send: raw/<load>/{requests-<worker>.bin, sample-*.bin, result-<worker>.json,
cluster.jsonl}, and requests/<worker>.bin in this host's time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders.cluster_link import Link  # isort: skip
import gevent

from brim import codec, disk
from brim.errors import BrimError, InvalidRecord, Lost, NoResource, NotReady, UsageError
from brim.records import ROW, ROW_HEADER
from loadtest import prepared
from loadtest.cluster_clock import ROUNDS, Clock, Round, header_in_our_time, measured, rows_in_our_time
from loadtest.cluster_wire import Arriving, Hello, Whole, WorkerPart, take
from loadtest.driver import LoadResult, LoadSpec
from loadtest.senders.answers import clean
from loadtest.senders.tally import result_file, row_file

CONNECT_WITHIN_S = 90.0  # a worker's own bound is 60
LEAD_NS = 100_000_000  # between the word and the common start, for the word to reach every worker
TRANSFER_S = 60.0  # beyond its own bounds a worker gets so long to deliver


@dataclass(slots=True, kw_only=True)
class Member:
    """A worker that has joined."""

    client_id: str
    hello: Hello
    link: Link
    pools: set[str] = field(default_factory=set)  # payloads that it has

    @property
    def name(self) -> str:
        return self.hello.name

    def clock(self) -> Clock:
        """Its clock against ours, now that neither side is busy."""
        rounds = []
        for _ in range(ROUNDS):
            asked_ns = time.monotonic_ns()
            self.link.say("ping")
            answer = self.link.hear("pong", within_s=CONNECT_WITHIN_S)
            rounds.append(Round(asked_ns=asked_ns, answered_ns=take(answer, "at_ns", int), heard_ns=answer["heard_ns"]))
        return measured(rounds)


class MasterLoad:
    """One load, shared over some workers."""

    def __init__(self, spec: LoadSpec, team: Sequence[Member]) -> None:
        self._spec = spec
        self._parts = [Part(spec, number, member) for number, member in enumerate(team)]
        self._stopped = False

    @property
    def failures(self) -> dict[int, str]:
        """Worker number -> why its part is not whole."""
        return {part.worker: str(part.failure) for part in self._parts if part.failure is not None}

    @property
    def no_room(self) -> bool:
        return any(isinstance(part.failure, NoResource) for part in self._parts)

    def prepare(self) -> None:
        """Every worker has its requests and its connections, and knows when to start; else none starts."""
        pool = _pool(Path(self._spec.payload))
        greenlets = [gevent.spawn(outcome, part.who, partial(part.prepare, pool)) for part in self._parts]
        gevent.joinall(greenlets)
        failures = [g.value for g in greenlets if g.value is not None]
        if failures:
            for part in self._parts:
                part.member.link.say("abandon")
            raise max(failures, key=lambda f: isinstance(f, Lost))
        start_ns = time.monotonic_ns() + LEAD_NS
        for part in self._parts:
            part.member.link.say("start", at_ns=start_ns + part.before.offset_ns)

    def stop(self) -> None:
        """No worker sends any more; they drain and deliver."""
        if not self._stopped:
            self._stopped = True
            for part in self._parts:
                part.member.link.say("stop")

    def gather(self) -> None:
        """Until every worker has delivered or is lost; one that ends badly takes the others with it."""
        gevent.joinall([gevent.spawn(self._follow, part) for part in self._parts])
        for part in self._parts:
            part.close()

    def _follow(self, part: Part) -> None:
        part.failure = outcome(part.who, part.receive)
        if part.failure is not None or part.ended not in ("finished", "stopped"):
            self.stop()


def outcome(who: str, act: Callable[[], None]) -> BrimError | None:
    """What kept it from ending well, whatever it was: a greenlet has no caller to raise to."""
    try:
        act()
    except BrimError as error:
        return error
    except Exception as error:
        traceback.print_exc()  # into the master's log
        return BrimError(f"{who}: bug: {error!r}")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The files that a payload's senders read."""

    key: str
    files: tuple[Path, ...]


def _pool(folder: Path) -> Pool:
    files = (prepared.payload_file(folder), *(folder / m.request for m in prepared.load(folder).members))
    key = hashlib.sha256("".join(disk.sha256(f) for f in files).encode()).hexdigest()[:16]
    return Pool(key=key, files=files)


class Part:
    """One worker's part in a load, as the master sees it."""

    def __init__(self, spec: LoadSpec, number: int, member: Member) -> None:
        self._spec, self._number, self.member = spec, number, member
        self.worker = spec.first_worker + number
        self.failure: BrimError | None = None
        self.ended = ""
        self._folder = Path(spec.folder)
        self._raw = self._folder / f"requests-{self.worker}.bin"
        self._arriving = Arriving(f"{member.link.other}: its rows")
        self._after: Clock | None = None
        self._host_busy: float | None = None
        self._streams: tuple[BinaryIO, ...] = ()

    @property
    def who(self) -> str:
        return self.member.link.other

    def prepare(self, pool: Pool) -> None:
        """Clock, requests, connections; raises what the worker could not do, by the worker's name."""
        link = self.member.link
        self.before = self.member.clock()
        if pool.key not in self.member.pools:
            link.say("pool", key=pool.key, files=len(pool.files))
            for file in pool.files:
                link.send_file(file.name, file)
            self.member.pools = {pool.key}
        link.say("load", spec=codec.to_plain(self._spec), number=self._number, pool=pool.key)
        answer = link.hear("connected", "failed", within_s=CONNECT_WITHIN_S)
        if answer["kind"] == "failed":
            raise _failure(answer, link.other)

    def receive(self) -> None:
        """Rows as they come, answers that were kept, and the result."""
        link = self.member.link
        deadline = time.monotonic() + self._spec.seconds + self._spec.drain_s + TRANSFER_S
        self._open()
        while True:
            message = link.hear("chunk", "file", "done", "failed", within_s=deadline - time.monotonic())
            if message["kind"] == "failed":
                raise _failure(message, link.other)
            if message["kind"] == "done":
                break
            if message["kind"] == "chunk":
                self._take_rows(link.receive_chunk(message, self._arriving))
            else:
                link.receive_file(message, self._folder)
        self._conclude(message)

    def close(self) -> None:
        """What arrived is on the disk, and cluster.jsonl says whose it is."""
        for stream in self._streams:
            stream.close()
        share = WorkerPart(
            name=self.member.name, worker=self.worker, before=self.before, after=self._after,
            host_busy=self._host_busy,
        )  # fmt: skip
        disk.append(self._folder / "cluster.jsonl", share)

    def _open(self) -> None:
        ours = row_file(Path(self._spec.rows), self.worker)
        disk.make_folder(ours.parent)
        with disk.told(ours):
            self._streams = (self._raw.open("xb", buffering=0), ours.open("xb", buffering=0))

    def _take_rows(self, data: bytes) -> None:
        """Into the raw file as they are, and into the run's own in this host's time."""
        offset_ns, head = self.before.offset_ns, b""
        rows = data
        if self._arriving.size == len(data):  # the first chunk begins with the header
            if len(data) < ROW_HEADER.size:
                raise InvalidRecord(f"{self.who}: its rows begin without a header")
            head, rows = header_in_our_time(data[: ROW_HEADER.size], offset_ns), data[ROW_HEADER.size :]
        ours = head + rows_in_our_time(rows, self.worker, offset_ns)
        with disk.told(self._raw):
            for stream, part in zip(self._streams, (data, ours), strict=True):
                write_all(stream.fileno(), part)

    def _conclude(self, done: dict[str, Any]) -> None:
        """The result in this host's time, if it says what the rows say."""
        who = self.who
        plain = take(done, "result", dict)
        result = codec.build(LoadResult, plain, where=f"{who}: its result")
        self._arriving.end(Whole(size=take(done, "size", int), sha256=take(done, "sha256", str)))
        rows = (self._arriving.size - ROW_HEADER.size) // ROW.size
        if not result.no_room and rows != result.sent:
            raise InvalidRecord(f"{who} sent {result.sent} requests and {rows} rows; its part cannot be counted")
        self._host_busy = take(done, "host_busy", float)
        offset_ns = self.before.offset_ns
        result = dataclasses.replace(
            result, workers=(self.worker,), start_ns=result.start_ns - offset_ns, end_ns=result.end_ns - offset_ns
        )
        disk.save(result_file(self._folder, self.worker), result)
        self.ended = result.ended
        self._after = self.member.clock()


def _failure(message: dict[str, Any], who: str) -> BrimError:
    """What a worker could not do, as an error of its own kind."""
    kinds: dict[int, type[BrimError]] = {k.exit_code: k for k in (UsageError, NotReady, Lost, NoResource)}
    return kinds.get(take(message, "exit_code", int), BrimError)(f"{who}: {clean(take(message, 'message', str))}")


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
