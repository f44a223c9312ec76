"""The clock of another host: its offset from ours, and rows stamped there turned into our time.

Pure. A clock that reads `ours + offset_ns` is measured by questions and answers: the answer's reading lies somewhere
between question and answer, so the offset is known within half the round trip, and the shortest one says most
(Cristian, Distributed Computing 3, 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brim.errors import InvalidRecord
from brim.records import ROW, ROW_HEADER
from judging.rows import ROW_DTYPE

ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One question and its answer: asked and heard on our clock, answered on theirs."""

    asked_ns: int
    answered_ns: int
    heard_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Their reading minus ours, known within the uncertainty."""

    offset_ns: int
    uncertainty_ns: int
    at_ns: int  # when it was measured, on our clock

    def __str__(self) -> str:
        return f"{self.offset_ns / 1e6:+.3f} ms (±{self.uncertainty_ns / 1e6:.3f} ms)"


def measured(rounds: Sequence[Round]) -> Clock:
    """The offset by the shortest round trip."""
    best = min(rounds, key=lambda r: r.heard_ns - r.asked_ns)
    return Clock(
        offset_ns=best.answered_ns - (best.asked_ns + best.heard_ns) // 2,
        uncertainty_ns=(best.heard_ns - best.asked_ns + 1) // 2,
        at_ns=best.heard_ns,
    )


def drift(first: Clock, last: Clock) -> str:
    """How far the clock went from us between two measurements, in words."""
    moved_ns = last.offset_ns - first.offset_ns
    known_ns = first.uncertainty_ns + last.uncertainty_ns
    seconds = (last.at_ns - first.at_ns) / 1e9
    return f"{moved_ns / 1e6:+.3f} ms (±{known_ns / 1e6:.3f} ms) in {seconds:.0f} s"


def header_in_our_time(header: bytes, offset_ns: int) -> bytes:
    """A row file's header with its anchor on our clock."""
    magic, schema, unix_ns, monotonic_ns = ROW_HEADER.unpack(header)
    return ROW_HEADER.pack(magic, schema, unix_ns, monotonic_ns - offset_ns)


def rows_in_our_time(rows: bytes, worker: int, offset_ns: int) -> bytes:
    """Whole rows of this worker with their three instants on our clock; InvalidRecord if they are not its rows."""
    if len(rows) % ROW.size:
        raise InvalidRecord(f"worker {worker}: {len(rows)} bytes are no whole rows")
    if (np.frombuffer(rows, ROW_DTYPE)["worker"] != worker).any():
        raise InvalidRecord(f"worker {worker}: rows of another worker came from it")
    words = np.frombuffer(rows, "<i8").reshape(-1, ROW.size // 8).copy()  # three instants, then the rest of the row
    words[:, :3] -= offset_ns
    return words.tobytes()
