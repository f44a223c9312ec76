"""What every sender made of greenlets does alike: it waits for its parent's word, flushes, loads to the end and drains.

Knows no load generator; rows and result are the shell's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket

from brim.errors import NotReady
from loadtest.senders import shell
from loadtest.senders.alarm import Alarm
from loadtest.senders.dispatch import Dispatcher

READABLE = 1  # libev's word for the event


def start_ns() -> int:
    """The common instant that the parent names on stdin."""
    gevent.socket.wait_read(0, timeout=shell.START_WITHIN_S, timeout_exc=NotReady(shell.NEVER_STARTED))
    return shell.start_ns(sys.stdin.readline())


def begin(share: shell.Share, start_ns: int) -> int:
    """Begin the load at that instant; when it is to end by itself."""
    if share.dispatcher is None:
        gevent.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
    else:  # the first arrival, too, is the alarm's
        share.dispatcher.begin(start_ns, alarm)
    return share.begin(start_ns)


def alarm(ring: Callable[[], None]) -> Alarm:
    """One that rings in gevent's hub."""
    loop = gevent.get_hub().loop

    def started(watcher: Any) -> Any:
        watcher.start(ring)
        return watcher

    return Alarm(lambda fd: started(loop.io(fd, READABLE)), lambda seconds: started(loop.timer(seconds)))


def next_arrival(dispatcher: Dispatcher) -> int:
    """Wait until an arrival is due for this greenlet: the instant at which it was."""
    due_ns = dispatcher.overdue()
    if not due_ns:
        hub = gevent.get_hub()
        dispatcher.park(gevent.getcurrent().switch)
        due_ns = int(hub.switch())
    return due_ns


def keep_flushing(share: shell.Share) -> None:
    """Rows to the disk, again and again, until killed."""
    with share.job.watched():
        while True:
            gevent.sleep(shell.FLUSH_S)
            share.flush()


def load_and_drain(share: shell.Share, end_ns: int) -> None:
    """Wait until the load is told to stop or its time is over, and then for what is in flight, within its bound."""
    job = share.job
    _until(share.over, end_ns)
    _until(share.caught_up, end_ns + shell.CATCH_UP_NS)
    job.stop("finished")
    _until(lambda: not job.in_flight, time.monotonic_ns() + int(share.spec.drain_s * 1e9))


def _until(over: Callable[[], bool], deadline_ns: int) -> None:
    while not over() and (left := deadline_ns - time.monotonic_ns()) > 0:
        gevent.sleep(min(0.01, left / 1e9))
