"""A sender process that counts its requests but keeps no row of them: what recording costs is the difference.

Run by benchmarks.rates in place of loadtest.senders.locust_run.
"""

from __future__ import annotations

import sys

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders import locust_run  # isort: skip
from loadtest.senders import shell
from loadtest.senders.tally import RowFile


class Unrecorded(RowFile):
    """A row file that stays empty."""

    def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None:
        self.counts[status] += 1

    def flush(self) -> None:
        pass


if __name__ == "__main__":
    shell.RowFile = Unrecorded  # type: ignore[attr-defined]  # what every sender's share writes into
    sys.exit(locust_run.main(sys.argv[1:]))
