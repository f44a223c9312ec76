"""A load host's worker, what `brim loadtest --worker ADDR` becomes: `python -m loadtest.senders.cluster_worker ORDER`.

Serves load after load for one master until that says bye (exit 0) or is gone (exit 5; within seconds nothing is sent
any more). Writes requests and rows of one load at a time into its folder, which goes at a good end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders.cluster_link import MESSAGE, ClusterWorker, Link  # isort: skip
import gevent
import gevent.event
from locust import runners
from locust.env import Environment

import brim
from brim import codec, disk, guard
from brim.errors import BrimError, Interrupted, InvalidRecord, Lost, NotReady, UsageError
from brim.records import ROW_SCHEMA, Access
from loadtest import prepared
from loadtest.cluster_wire import CHUNK_BYTES, LOOK_S, PROTOCOL, Hello, Place, WorkerOrder, permitted, take, whole_rows
from loadtest.driver import LoadResult, LoadSpec
from loadtest.senders import locust_http
from loadtest.senders.locust_run import Sender
from loadtest.senders.tally import result_file, row_file
from loadtest.statistics_reader import machine_seconds

WELCOME_WITHIN_S = 15.0
START_WITHIN_S = 180.0  # after this worker is connected: the others must be, too
SHIP_S = 1.0  # how often rows leave while the load runs


def main(argv: list[str]) -> int:
    """Serve one master; says why it ended, and the contract's exit code, as `brim` itself does."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    try:
        order = codec.from_json(WorkerOrder, argv[0], where="order")
        _raise_signals()
        _say(f"worker {Worker(order).serve()}: the master has ended well")
        return 0
    except BrimError as error:
        _say(f"{error}\nbrim: exit {error.exit_code} ({error.word})")
        return error.exit_code
    except Interrupted as stopped:
        _say(f"{stopped}\nbrim: exit {stopped.exit_code} ({stopped.word})")
        return stopped.exit_code
    except Exception as error:  # the process boundary, as in brim.cli
        traceback.print_exc()
        _say(f"bug: {error!r}\nbrim: exit 70 (bug)")
        return 70


def _say(text: str) -> None:
    print(f"brim: {text}", file=sys.stderr, flush=True)


def _raise_signals() -> None:
    """The first SIGINT or SIGTERM ends the worker in order, the second at once."""
    main_greenlet = gevent.getcurrent()
    seen: list[int] = []

    def signalled(signum: int) -> None:
        if seen:
            os._exit(128 + signum)
        seen.append(signum)
        gevent.kill(main_greenlet, Interrupted(signum))

    for signum in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(signum, signalled, signum)


class Worker:
    """This process in the cluster."""

    def __init__(self, order: WorkerOrder) -> None:
        self._order, self._place = order, Place(host=order.host, port=order.port)
        self._hello = Hello(
            host=socket.gethostname(), pid=os.getpid(), token=secrets.token_hex(8), brim=brim.__version__,
            protocol=PROTOCOL, row_schema=ROW_SCHEMA,
        )  # fmt: skip
        self._folder = Path(order.folder) / f"worker-{os.getpid()}-{self._hello.token}"
        self._sender: ClusterSender | None = None
        self._environment = Environment(user_classes=[locust_http.KServeUser])
        self._link = Link(f"the master at {self._place}", self._send)
        self._link.at_once["ping"] = lambda asked: self._link.say("pong", at_ns=time.monotonic_ns())
        self._link.at_once["stop"] = lambda told: self._stop("stopped")
        self._link.at_once["bye"] = lambda told: self._dismiss()
        self._dismissed = False

    def serve(self) -> str:
        """Load after load until the master says bye; gives the name under which it did."""
        self._connect()
        disk.make_folder(self._folder)
        try:
            self._introduce()
            self._work()
        except BaseException as error:
            if not (isinstance(error, Lost) and self._dismissed):
                self._link.say("leaving")
                if (self._folder / "load").exists():
                    _say(f"the rows of the last load are kept in {self._folder / 'load'}")
                else:
                    shutil.rmtree(self._folder, ignore_errors=True)
                raise
        finally:
            self._leave()
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._hello.name

    def _send(self, data: dict[str, Any]) -> None:
        self._runner.send_message(MESSAGE, data)

    def _connect(self) -> None:
        """Locust's own greeting, again and again until the master answers."""
        runners.CONNECT_TIMEOUT, runners.CONNECT_RETRY_COUNT = 1, int(self._order.within_s)
        host = f"[{self._order.host}]" if ":" in self._order.host else self._order.host
        try:
            self._runner = ClusterWorker(self._environment, host, self._order.port)
        except ConnectionError:
            raise NotReady(
                f"no master answers at {self._place} within {self._order.within_s:g} s; on the measuring host: "
                f"brim loadtest TARGET --master {self._place} --expect-workers N"
            ) from None
        self._environment.runner = self._runner
        self._link.take(None)  # it has answered just now, however long that took
        self._runner.hear = self._link.take
        self._runner.register_message(MESSAGE, lambda environment, msg: self._link.take(msg.data))

    def _introduce(self) -> None:
        self._link.say("hello", hello=codec.to_plain(self._hello))
        try:
            answer = self._link.hear("welcome", "refused", within_s=WELCOME_WITHIN_S)
        except Lost:
            raise NotReady(f"what listens at {self._place} is no `brim loadtest --master`") from None
        if answer["kind"] == "refused":
            raise UsageError(f"the master at {self._place} refused: {take(answer, 'message', str)}")
        _say(f"worker {self._hello.name} serves the master at {self._place}")

    def _work(self) -> None:
        while True:
            order = self._link.hear("pool", "load", "abandon")
            if order["kind"] == "pool":
                self._receive_pool(order)
            elif order["kind"] == "load":
                self._load(order)

    def _leave(self) -> None:
        """Send nothing any more, to anybody."""
        if self._runner.user_count:
            self._runner.stop()
        self._runner.greenlet.kill()
        self._runner.client.close(linger=500)

    def _receive_pool(self, order: Mapping[str, Any]) -> None:
        """The requests of the loads to come, in the place of those before."""
        shutil.rmtree(self._folder / "pool", ignore_errors=True)
        for _ in range(take(order, "files", int)):
            self._link.receive_file(self._link.hear("file"), self._folder / "pool")
        pool = prepared.load(self._folder / "pool")
        if any(m.request != Path(m.request).name for m in pool.members):
            raise InvalidRecord("the payload names files outside its folder")

    def _load(self, order: Mapping[str, Any]) -> None:
        """One load: connect, start when told, send, deliver; what goes wrong here is the master's to judge."""
        raw = self._folder / "load"
        shutil.rmtree(raw, ignore_errors=True)
        disk.make_folder(raw)
        watch = gevent.spawn(self._watch_master)
        try:
            self._sender = ClusterSender(self._spec(order, raw), take(order, "number", int), self._environment)
            self._sender.connect()
            self._link.say("connected")
            begin = self._link.hear("start", "abandon", within_s=START_WITHIN_S)
            if begin["kind"] == "start":
                self._send_and_deliver(self._sender, take(begin, "at_ns", int))
        except (Lost, InvalidRecord):  # the conversation itself is broken
            raise
        except BrimError as error:
            self._link.check()
            self._link.say("failed", exit_code=error.exit_code, message=str(error))
        finally:
            watch.kill()
            if self._sender is not None:
                self._sender.end()
                self._sender = None

    def _spec(self, order: Mapping[str, Any], raw: Path) -> LoadSpec:
        """The master's spec with this host's folders and with what this host's user allows; it names no other file."""
        spec = codec.build(LoadSpec, take(order, "spec", dict), where="spec")
        pool = prepared.load(self._folder / "pool")
        endpoint = guard.parse_url(pool.url)
        allowed = permitted(self._order.allowed, spec.allowed)
        guard.judge(endpoint.host, endpoint.port, allowed)
        return dataclasses.replace(
            spec,
            folder=str(raw),
            rows=str(raw),
            payload=str(self._folder / "pool"),
            allowed=allowed,
            access=Access(),
            cpus=(),
        )

    def _send_and_deliver(self, sender: ClusterSender, at_ns: int) -> None:
        shipping = Shipping(self._link, row_file(Path(sender.spec.rows), sender.worker))
        carrier = gevent.spawn(shipping.keep_on)
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        busy_before_s, total_before_s = machine_seconds(cores)
        try:
            sender.load(at_ns)
        finally:
            shipping.over.set()
        busy_s, total_s = machine_seconds(cores)
        carrier.join()
        self._link.check()
        shipping.ship()
        result = disk.load(LoadResult, result_file(Path(sender.spec.folder), sender.worker))
        for sample in result.samples:
            self._link.send_file(sample.file, Path(sender.spec.folder) / sample.file)
        self._link.say(
            "done", result=codec.to_plain(result), size=shipping.size, sha256=shipping.digest.hexdigest(),
            host_busy=min(1.0, (busy_s - busy_before_s) / max(total_s - total_before_s, 1e-3)),
        )  # fmt: skip

    def _stop(self, ended: Any) -> None:
        if self._sender is not None:
            self._sender.job.stop(ended)

    def _dismiss(self) -> None:
        """The master said bye: whatever is going on ends now, and well."""
        self._dismissed, self._link.gone = True, "it said bye"
        self._stop("stopped")

    def _watch_master(self) -> None:
        """Nobody wants this load any more once the master is gone."""
        while True:
            gevent.sleep(LOOK_S)
            try:
                self._link.check()
            except Lost as error:
                if self._sender is not None:
                    self._sender.job.refusal = error  # while it still connects
                self._stop("crashed")
                return


class ClusterSender(Sender):
    """A sender whose users are those of Locust's worker."""

    def _start_users(self) -> None:
        self.environment.stats.clear_all()
        self.environment.runner.start_worker({locust_http.KServeUser.__name__: self.concurrency})

    def _stop_users(self) -> None:
        self.environment.runner.stop()
        self.environment.runner.worker_state = runners.STATE_INIT

    def end(self) -> None:
        """Leave nothing behind for the next load, however this one ended."""
        self.job.stop("stopped")
        if self.environment.runner.user_count:
            self._stop_users()
        gc.unfreeze()  # connect() froze what was there


class Shipping:
    """Rows on their way to the master, while they are written and at the end."""

    def __init__(self, link: Link, file: Path) -> None:
        self._link, self._file = link, file
        self.size, self.digest = 0, hashlib.sha256()
        self.over = gevent.event.Event()

    def keep_on(self) -> None:
        """Ship about once a second; a master that is gone ends it, and is noticed elsewhere."""
        with contextlib.suppress(Lost):
            while not self.over.wait(SHIP_S):
                self.ship()

    def ship(self) -> None:
        """Every whole row that is in the file and was not shipped yet; a full disk cuts the last one short."""
        with disk.told(self._file), self._file.open("rb") as stream:
            stream.seek(self.size)
            while data := whole_rows(stream.read(CHUNK_BYTES)):
                self._link.send_chunk(self.size, data)
                self.size += len(data)
                self.digest.update(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
