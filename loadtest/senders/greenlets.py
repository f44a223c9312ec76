"""What every sender made of greenlets does alike: it waits for its parent's word, flushes, loads to the end and drains.

Knows no load generator; rows and result are the shell's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import gevent
import gevent.socket

from brim.errors import NotReady
from loadtest.senders import shell


def start_ns() -> int:
    """The common instant that the parent names on stdin."""
    gevent.socket.wait_read(0, timeout=shell.START_WITHIN_S, timeout_exc=NotReady(shell.NEVER_STARTED))
    return shell.start_ns(sys.stdin.readline())


def sleep_until(instant_ns: int) -> None:
    gevent.sleep(max(0.0, (instant_ns - time.monotonic_ns()) / 1e9))


def keep_flushing(share: shell.Share) -> None:
    """Rows to the disk, again and again, until killed."""
    with share.job.watched():
        while True:
            gevent.sleep(shell.FLUSH_S)
            share.flush()


def load_and_drain(share: shell.Share, end_ns: int) -> None:
    """Wait until the load is told to stop or its time is over, and then for what is in flight, within its bound."""
    job = share.job
    _until(lambda: job.stopping, end_ns)
    job.stop("finished")
    _until(lambda: not job.in_flight, time.monotonic_ns() + int(share.spec.drain_s * 1e9))


def _until(over: Callable[[], bool], deadline_ns: int) -> None:
    while not over() and (left := deadline_ns - time.monotonic_ns()) > 0:
        gevent.sleep(min(0.01, left / 1e9))
