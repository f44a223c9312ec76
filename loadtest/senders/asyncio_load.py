"""Asyncio tasks that send, in one process: slots with one request in flight after another, in closed or open loop.

How a request is sent and judged is the slot's own; the load's rows and result are written by the shell.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable
from typing import Protocol

from brim.errors import NotReady
from brim.records import Status
from loadtest.driver import LoadSpec
from loadtest.senders import shell
from loadtest.senders.alarm import Alarm
from loadtest.senders.backoff import Backoff
from loadtest.senders.dispatch import Dispatcher
from loadtest.senders.job import Job


class Slot:
    """One request in flight after another."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.sent_ns, self.overdue = 0, False
        self.broken = False  # the last request lost its connection, or found none
        self.refusal = ""  # what was said instead of a connection
        self._payload = len(job.users) % len(job.requests)  # slots begin at different payloads
        self._backoff = Backoff(job)
        job.users.append(self)

    def cut(self) -> None:
        """The request in flight is overdue: end it."""
        raise NotImplementedError

    async def exchange(self, payload: int) -> tuple[Status, str]:
        """Send one request of the pool: how it ended, and why if not well; cancelled, it gives up."""
        raise NotImplementedError

    def answer(self) -> bytes:
        """The last good answer as a serialized ModelInferResponse."""
        raise NotImplementedError

    async def load(self) -> None:
        """Send until the job is over."""
        job = self.job
        with job.watched():
            while not job.stopping:
                wait_s = job.turn_s() + self._backoff.pause_s
                if wait_s:
                    await asyncio.sleep(wait_s)
                    if job.stopping:
                        return
                await self._one()

    async def send_arrivals(self, dispatcher: Dispatcher) -> None:
        """In open loop, send whatever is due for this slot, until the job is over."""
        job, loop = self.job, asyncio.get_running_loop()
        with job.watched():
            while not job.stopping:
                if not (due_ns := dispatcher.overdue()):
                    woken: asyncio.Future[int] = loop.create_future()
                    dispatcher.park(woken.set_result)
                    due_ns = await woken
                if not job.stopping:
                    await self._one(due_ns)
                    if self._backoff.pause_s:
                        await asyncio.sleep(self._backoff.pause_s)

    async def _one(self, due_ns: int = 0) -> None:
        """One request from its first byte to its row, due at an instant in open loop."""
        job, payload = self.job, self._payload
        self._payload = (payload + 1) % len(job.requests)
        self.sent_ns = sent_ns = time.monotonic_ns()
        try:
            status, text = await self.exchange(payload)
        except asyncio.CancelledError:  # in flight when we stopped
            status, text = Status.CANCELLED, ""
            raise
        except Exception as error:  # a bug in here must count against the figure, never beside it
            status, text = Status.FAILED, job.bug(error)
            raise
        finally:
            done_ns = time.monotonic_ns()
            if status is Status.TIMED_OUT:  # the deadline's own clock may be a little ahead
                done_ns = max(done_ns, sent_ns + job.timeout_ns)
            self.sent_ns, self.overdue = 0, False
            job.record(due_ns or sent_ns, sent_ns, done_ns, status, text)
        if status is Status.OK and done_ns >= job.samples.due_ns:
            job.samples.offer(done_ns, payload, None, self.answer())
        if self.broken:
            self._backoff.broke(self.refusal)
            self.broken, self.refusal = False, ""
        elif status is not Status.TIMED_OUT:
            self._backoff.answered()


class Wire(Protocol):
    """The connections of one process."""

    async def connect(self) -> None:
        """Open them all; NotReady or UsageError if there is none to be had."""

    def slot(self, number: int) -> Slot: ...

    async def close(self) -> None: ...


class AsyncioSender:
    """One process's share of a load point over one wire."""

    def __init__(self, spec: LoadSpec, number: int, wire: Callable[[shell.Share], Wire]) -> None:
        self._share = shell.Share(spec, number)
        self._wire = wire(self._share)
        self._runner = asyncio.Runner()

    def connect(self) -> None:
        """Open every connection."""
        self._runner.run(self._connect())

    def send(self) -> None:
        """Load from the common instant until told to stop or time is over, drain, and write the result."""
        with self._runner:
            self._runner.run(self._send())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._share.job.stop, "stopped")
        await self._wire.connect()
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it between two requests

    async def _send(self) -> None:
        share, job = self._share, self._share.job
        start_ns = await _start_ns()
        slots = [self._wire.slot(number) for number in range(share.concurrency)]
        if share.dispatcher is None:
            await asyncio.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
            tasks = [asyncio.create_task(slot.load()) for slot in slots]
        else:  # the first arrival, too, is the alarm's
            tasks = [asyncio.create_task(slot.send_arrivals(share.dispatcher)) for slot in slots]
            share.dispatcher.begin(start_ns, _alarm)
        end_ns = share.begin(start_ns)
        keepers = [asyncio.create_task(_keep_flushing(share)), asyncio.create_task(_enforce_deadlines(job))]
        await _until(share.over, end_ns)
        await _until(share.caught_up, end_ns + shell.CATCH_UP_NS)
        job.stop("finished")
        await _until(lambda: not job.in_flight, time.monotonic_ns() + int(share.spec.drain_s * 1e9))
        for task in (*tasks, *keepers):
            task.cancel()  # what is still in flight, each slot takes down as cancelled
        await asyncio.gather(*tasks, *keepers, return_exceptions=True)
        await self._wire.close()
        share.write()


def _alarm(ring: Callable[[], None]) -> Alarm:
    """One that rings in the running loop."""
    loop = asyncio.get_running_loop()
    return Alarm(lambda fd: loop.add_reader(fd, ring), lambda seconds: loop.call_later(seconds, ring))


async def _start_ns() -> int:
    """The common instant that the parent names on stdin."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), told.set)
    try:
        await asyncio.wait_for(told.wait(), shell.START_WITHIN_S)
    except TimeoutError:
        raise NotReady(shell.NEVER_STARTED) from None
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return shell.start_ns(sys.stdin.readline())


async def _until(over: Callable[[], bool], deadline_ns: int) -> None:
    while not over() and (left := deadline_ns - time.monotonic_ns()) > 0:
        await asyncio.sleep(min(0.01, left / 1e9))


async def _keep_flushing(share: shell.Share) -> None:
    with share.job.watched():
        while True:
            await asyncio.sleep(shell.FLUSH_S)
            share.flush()


async def _enforce_deadlines(job: Job) -> None:
    with job.watched():
        while True:
            await asyncio.sleep(job.enforce_deadline())


def run(argv: list[str], wire: Callable[[shell.Share], Wire]) -> int:
    """One sender process over such a wire, to its end."""
    return shell.run(argv, lambda spec, number: AsyncioSender(spec, number, wire))
