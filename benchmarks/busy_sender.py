"""A sender process of which every request costs more processor time, as if there were real work to do for it.

Run by benchmarks.rates in place of loadtest.senders.locust_run; reads BRIM_BENCH_BUSY_LOOPS.
"""

from __future__ import annotations

import os
import sys

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders import locust_http, locust_run  # isort: skip
from benchmarks.busy_work import LOOPS, work


class BusyUser(locust_http.KServeUser):
    """Works before each request."""

    loops = int(os.environ[LOOPS])

    def _one(self, due_ns: int = 0) -> int:
        work(self.loops)
        return super()._one(due_ns)


if __name__ == "__main__":
    locust_http.KServeUser = BusyUser  # type: ignore[misc]  # the one user that locust_run starts
    sys.exit(locust_run.main(sys.argv[1:]))
