"""The pauses of a user whose requests do not reach the server, and the word to its job that nobody is there.

Sleeping is the caller's.
"""

from __future__ import annotations

from loadtest.senders.job import Job

CONNECT_S = 5.0  # for one connection, where a request may take that long
FIRST_S, MOST_S = 0.01, 0.5


class Backoff:
    """One user's pause before its next request: twice as long with each request in a row that was not answered."""

    def __init__(self, job: Job) -> None:
        self._job, self.pause_s = job, 0.0

    def answered(self) -> None:
        """The server is there: it said something, whatever it was."""
        self.pause_s = 0.0
        self._job.connected()

    def broke(self, refusal: str = "") -> None:
        """A connection broke; or none was to be had, and this is what was said instead."""
        self.pause_s = min(MOST_S, 2 * self.pause_s or FIRST_S)
        if refusal:
            self._job.refused(refusal)
