"""The sender `locust_http`: Locust users that send prepared HTTP requests, in a process of their own.

`python -m loadtest.senders.locust_run SPEC.json NUMBER PARENT_PID`; what it reads and writes, the shell says.
SIGTERM: send no more, drain, write.
"""

from __future__ import annotations

import gc
import signal
import sys
import time

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders import locust_http  # isort: skip
import gevent
import gevent.event
from locust.env import Environment

from brim.access import http_header_lines
from brim.errors import NotReady
from loadtest.driver import LoadSpec
from loadtest.senders import greenlets, shell
from loadtest.senders.job import with_headers


class Sender(shell.Share):
    """One process's share of a load point; its users run in `environment` if one with a runner is given."""

    def __init__(self, spec: LoadSpec, number: int, environment: Environment | None = None) -> None:
        super().__init__(spec, number)
        self.job.requests = with_headers(self.job.requests, http_header_lines(spec.access))
        if environment is None:
            environment = Environment(user_classes=[locust_http.KServeUser], host=self.payload.url)
            environment.create_local_runner()
        self.environment = environment
        self.environment.brim_job, self.environment.brim_dispatcher = self.job, self.dispatcher
        self.environment.brim_released = gevent.event.Event()
        self.environment.brim_users, self.environment.brim_waiting = self.concurrency, 0

    def connect(self) -> None:
        """Start every user, the first with its connection; NotReady or UsageError if it gets none."""
        self._start_users()
        deadline = time.monotonic() + shell.CONNECT_WITHIN_S
        while self.environment.brim_waiting < self.concurrency and self.job.refusal is None:
            if time.monotonic() > deadline:
                raise NotReady(f"{self.spec.url}: no connection within {shell.CONNECT_WITHIN_S:g} s")
            gevent.sleep(0.005)
        if self.job.refusal is not None:
            raise self.job.refusal
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not walk it between two requests

    def send(self) -> None:
        """Load from the instant that the parent names on stdin."""
        self.load(greenlets.start_ns())

    def load(self, start_ns: int) -> None:
        """Send from that instant until told to stop or time is over, drain, and write the result."""
        end_ns = greenlets.begin(self, start_ns)
        keepers = [gevent.spawn(locust_http.enforce_deadlines, self.job), gevent.spawn(greenlets.keep_flushing, self)]
        self.environment.brim_released.set()
        greenlets.load_and_drain(self, end_ns)
        self._stop_users()
        gevent.killall(keepers)
        self.write()

    def _start_users(self) -> None:
        gevent.signal_handler(signal.SIGTERM, self.job.stop, "stopped")
        self.environment.runner.start(self.concurrency, spawn_rate=self.concurrency)

    def _stop_users(self) -> None:
        """Kill what is still in flight, which each user takes down as cancelled."""
        self.environment.runner.quit()


def main(argv: list[str]) -> int:
    """Run one sender to its end."""
    return shell.run(argv, Sender)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
