"""The Locust user that sends prepared requests over keep-alive HTTP/1.1 connections opened by the loopback guard.

senders.locust_run drives it in a child process. It is also a plain locustfile, with or without the web UI:

    locust -f loadtest/senders/locust_http.py --host http://127.0.0.1:8000 --brim-model NAME

Reads a prepared payload; what is written is its job's affair.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from locust import User, events, task
from locust.exception import StopUser

from brim import guard
from brim.errors import BrimError, NotReady, UsageError
from brim.records import Status
from loadtest.senders import greenlets
from loadtest.senders.answers import Garbage, Head, clean, read_head
from loadtest.senders.backoff import CONNECT_S, Backoff
from loadtest.senders.connection import Connection
from loadtest.senders.dispatch import Dispatcher
from loadtest.senders.job import Job, load_pool, ramp_s
from loadtest.senders.tls_connection import TlsConnection

BURST_NS = 500_000_000  # one @task call sends for so long: rare enough to cost nothing; our own stop is not bound by it
BUFFER_BYTES = 16 * 2**10


class KServeUser(User):  # type: ignore[misc]  # Locust is not annotated
    """One request in flight after another, over one connection."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.job: Job = environment.brim_job
        self.sent_ns, self.overdue = 0, False
        self._log_request = environment.stats.log_request
        self._dispatcher: Dispatcher | None = getattr(environment, "brim_dispatcher", None)  # of an open loop
        self._connection: Connection | TlsConnection | None = None
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._payload = 0
        self._backoff = Backoff(self.job)

    def on_start(self) -> None:
        """The first one connects; all wait for the start of every sender, and then join one after another."""
        position = len(self.job.users)
        self._payload = position % len(self.job.requests)  # users begin at different payloads
        self.job.users.append(self)
        released: gevent.event.Event | None = getattr(self.environment, "brim_released", None)
        if released is None:
            return
        if position == 0:
            try:
                self._connect()
            except BrimError as error:
                self.job.refusal = error
        self.environment.brim_waiting += 1
        if self._dispatcher is not None:  # which starts each arrival when it is due
            return
        released.wait()
        gevent.sleep(ramp_s(position, self.environment.brim_users))

    def on_stop(self) -> None:
        self._drop()
        self.job.users.remove(self)

    @task  # type: ignore[untyped-decorator]
    def send(self) -> None:
        """Send requests for a short while; StopUser when the job is over."""
        until = time.monotonic_ns() + BURST_NS
        with self.job.watched():
            if self._dispatcher is not None:
                self._send_arrivals(self._dispatcher)
            while not self.job.stopping:
                wait_s = self.job.turn_s()
                if wait_s:
                    gevent.sleep(wait_s)
                    if self.job.stopping:
                        break
                if self._one() >= until:
                    return
        raise StopUser

    def _send_arrivals(self, dispatcher: Dispatcher) -> None:
        """In open loop, send whatever is due for this user, until the job is over."""
        while not self.job.stopping:
            due_ns = greenlets.next_arrival(dispatcher)
            if not self.job.stopping:
                self._one(due_ns)

    def cut(self) -> None:
        """Break the connection, so that this user's greenlet wakes from whatever it waits for."""
        if self._connection is not None:
            self._connection.cut()

    def _one(self, due_ns: int = 0) -> int:
        """One request from its first byte to its row, due at an instant in open loop; the instant when it ended."""
        job = self.job
        payload = self._payload
        self._payload = (payload + 1) % len(job.requests)
        total = 0
        self.sent_ns = sent_ns = time.monotonic_ns()
        intended_ns = due_ns or sent_ns
        try:
            connection = self._connection or self._connect()
            if self.overdue:  # while it connected: nobody will cut it any more
                raise ConnectionResetError
            connection.send(job.requests[payload])
            head, total = self._receive(connection)
            if self.overdue:  # whole at last, but the deadline has cut the connection meanwhile
                raise ConnectionResetError
            if head is None:
                status, text = Status.OK, ""
            else:
                status, text = job.judge.verdict(head, self._buffer)
                if head.close:
                    self._drop()
        except (BrimError, OSError, Garbage) as error:
            self._drop()
            status, text = self._broken(error)
        except Exception as error:  # a bug in here must count against the figure, never beside it
            self._ended(intended_ns, sent_ns, time.monotonic_ns(), Status.FAILED, job.bug(error), 0)
            raise
        except BaseException:  # the greenlet is being killed: the request was in flight when we stopped
            self.sent_ns = 0
            job.record(intended_ns, sent_ns, time.monotonic_ns(), Status.CANCELLED, "")
            raise
        done_ns = time.monotonic_ns()
        self._ended(intended_ns, sent_ns, done_ns, status, text, total)
        if done_ns >= job.samples.due_ns and status is Status.OK:
            self._offer_sample(done_ns, payload, total)
        if self._backoff.pause_s:
            gevent.sleep(self._backoff.pause_s)
        return done_ns

    def _ended(self, intended_ns: int, sent_ns: int, done_ns: int, status: Status, text: str, total: int) -> None:
        self.sent_ns, self.overdue = 0, False
        self.job.record(intended_ns, sent_ns, done_ns, status, text)
        self._log_request("POST", "infer", (done_ns - intended_ns) / 1e6, total)
        if text:
            self.environment.stats.log_error("POST", "infer", text)

    def _receive(self, connection: Connection | TlsConnection) -> tuple[Head | None, int]:
        """Read one whole answer into the buffer: its head, or None if it repeats the last good one, and its length."""
        judge, have = self.job.judge, 0
        head: Head | None = None
        while True:
            count = connection.receive(self._view[have:] if have else self._view)
            if not count:
                raise ConnectionResetError(0, "the server closed the connection")
            have += count
            if have == judge.good_total and self._buffer.startswith(judge.good_prefix):
                self._backoff.answered()
                return None, have
            head = head or read_head(self._view[:have].tobytes())
            total = head.total if head else -1
            if have == total:
                self._backoff.answered()
                return head, total
            if 0 <= total < have:
                raise Garbage(f"{have - total} bytes after the answer")
            if have == len(self._buffer):
                self._grow(have)

    def _grow(self, have: int) -> None:
        larger = bytearray(2 * len(self._buffer))
        larger[:have] = self._view[:have]
        self._buffer, self._view = larger, memoryview(larger)

    def _connect(self) -> Connection | TlsConnection:
        job = self.job
        within_s = min(CONNECT_S, job.timeout_s)
        self._connection = (
            TlsConnection(job.endpoint, job.allowed, within_s, job.tls)
            if job.tls
            else Connection(job.endpoint, job.allowed, within_s)
        )
        job.connected()
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _broken(self, error: Exception) -> tuple[Status, str]:
        """What a request without an answer counts as."""
        if self.overdue:
            return Status.TIMED_OUT, f"no answer within {self.job.timeout_s:g} s"
        self._backoff.broke(clean(str(error)) if isinstance(error, NotReady) else "")
        if isinstance(error, Garbage):
            return Status.FAILED, clean(f"protocol: {error}")
        told = getattr(error, "strerror", None) or error
        return Status.FAILED, clean(f"connection: {told}")

    def _offer_sample(self, done_ns: int, payload: int, total: int) -> None:
        head = read_head(self._view[:total].tobytes())
        if head is not None and head.json_bytes is not None:
            body = self._view[head.head_bytes : total].tobytes()
            self.job.samples.offer(done_ns, payload, head.json_bytes, body)


def enforce_deadlines(job: Job) -> None:
    """Cut overdue requests until the job is over and nothing is in flight."""
    with job.watched():
        while not job.stopping or job.in_flight:
            gevent.sleep(job.enforce_deadline())


# ---------------------------------------------------------------------------- as a plain locustfile


class Unrecorded:
    """No rows: in a plain Locust run its own statistics are the record."""

    def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None:
        pass


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: Any) -> None:
    parser.add_argument("--brim-model", default="", help="model to load (its data are random)")
    parser.add_argument("--brim-items", type=int, default=1, help="items per request")
    parser.add_argument("--brim-timeout", type=float, default=10.0, help="seconds that a request may take in all")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _refuse_open_ports(environment: Any, **_: Any) -> None:
    """End before anything listens beyond this machine: the web UI can start load, a master hands out code."""
    options = environment.parsed_options
    hosts = []
    if options is not None and not getattr(options, "headless", True) and not getattr(options, "worker", False):
        hosts.append(("--web-host", options.web_host))
    if options is not None and getattr(options, "master", False):
        hosts.append(("--master-bind-host", options.master_bind_host))
    for flag, host in hosts:
        try:
            guard.judge(host if host not in ("", "*") else "0.0.0.0", 0, {})
        except BrimError:
            logging.error("%s is %r: Brim listens on this machine only; add %s 127.0.0.1", flag, host, flag)
            os._exit(2)  # Locust goes on after SystemExit in a listener


@events.init.add_listener  # type: ignore[untyped-decorator]
def _prepare_early(environment: Any, **_: Any) -> None:
    """Without a web UI the target is known before the run's clock starts."""
    if environment.parsed_options is not None and environment.parsed_options.headless and environment.host:
        _prepare(environment)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Any, **_: Any) -> None:
    """Ask the server what the model takes, and prepare random requests for it."""
    from loadtest import payload, target  # numpy: only a plain Locust run needs it

    options = environment.parsed_options
    asked = (environment.host, options.brim_model, options.brim_items, options.brim_timeout)
    if getattr(environment, "brim_asked", None) == asked and not environment.brim_job.stopping:
        return
    try:
        if not options.brim_model or not environment.host:
            raise UsageError("name the server and the model: --host http://127.0.0.1:8000 --brim-model NAME")
        found = target.describe(environment.host, options.brim_model, allowed={}, shapes={})
        with tempfile.TemporaryDirectory(prefix="brim-payload-") as folder:
            payload.prepare(found, Path(folder), items_per_request=options.brim_items, input_data=None, seed=0)
            pool, requests = load_pool(Path(folder))
    except BrimError as error:
        logging.error("%s", error)
        os._exit(error.exit_code)
    environment.brim_job = Job(
        payload=pool,
        requests=requests,
        allowed={},
        users=1,
        senders=1,
        timeout_s=options.brim_timeout,
        samples=0,
        rows=Unrecorded(),
    )
    environment.brim_asked = asked
    gevent.spawn(enforce_deadlines, environment.brim_job)
