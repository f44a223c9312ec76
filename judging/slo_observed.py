"""One load as the search for the rate at an SLO sees it: how long each scheduled request took, and who was late.

Reads the rows of a load and its schedule, writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from brim.records import Slo, StatsRead, Status
from judging.edges import Nanoseconds, whole_batch_edges
from judging.rows import Rows
from judging.tolerances import LATE_SHARE, PLACES_FULL, SENT_LATE
from judging.windows import answered

Floats: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = npt.NDArray[np.int64]

#: Of a profiling load, so much is taken as warm-up: its first batches are not yet what the closed loop settles to.
WARM_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """One load of single-item requests; `rows` are sorted by completion, `reads` by time."""

    load: int  # index of its line in loads.jsonl
    start_ns: int
    end_ns: int  # when sending stopped
    rows: Rows
    reads: tuple[StatsRead, ...] = ()
    offsets_ns: Nanoseconds | None = None  # open loop: the whole schedule, from start_ns
    outstanding: int | None = None  # open loop: so many in flight at most; None = no bound

    @property
    def settled_ns(self) -> int:
        """From here on a closed loop is taken to be steady."""
        return self.start_ns + round(WARM_SHARE * (self.end_ns - self.start_ns))

    @property
    def not_ok_share(self) -> float:
        """Of the requests that the server had its chance to answer."""
        ended = self.rows[self.rows["status"] != Status.CANCELLED]["status"]
        return float(np.mean(ended != Status.OK)) if ended.size else 1.0


def ended_otherwise(status: npt.NDArray[np.uint8], above: float = 0.0) -> str:
    """How requests ended that were not answered well: `250 (25.0%) rejected, 3 (0.3%) failed of 1000 requests`.

    Nothing if they are no more than the share `above`.
    """
    ended = status[status != Status.CANCELLED]
    counts = {
        word: int(np.count_nonzero(ended == kind))
        for kind, word in ((Status.REJECTED, "rejected"), (Status.TIMED_OUT, "timed out"), (Status.FAILED, "failed"))
    }
    if sum(counts.values()) <= above * ended.size:
        return ""
    told = ", ".join(f"{count} ({count / ended.size:.1%}) {word}" for word, count in counts.items() if count)
    return f"{told} of {ended.size} requests"


def latencies(observed: Observed) -> Floats:
    """Seconds from intended to answered, by the schedule; inf for what was rejected, failed, late beyond its deadline
    or never sent, which are over any limit.
    """
    offsets_ns = observed.offsets_ns if observed.offsets_ns is not None else np.empty(0, np.int64)
    rows = np.sort(observed.rows, order="intended_ns", kind="stable").view(Rows)
    due_ns = rows["intended_ns"] - observed.start_ns
    # Requests that are due in the same nanosecond take their places one after the other.
    place = np.searchsorted(offsets_ns, due_ns) + np.arange(due_ns.size) - np.searchsorted(due_ns, due_ns)
    found = np.full(offsets_ns.size, np.inf)
    good = (rows["status"] == Status.OK) & (place < offsets_ns.size)
    found[place[good]] = (rows["done_ns"] - rows["intended_ns"])[good] / 1e9
    return found


def sent_late(observed: Observed, late_ms: float) -> float:
    """Share of the requests that the client sent so much late, or never, though it could have had more in flight.

    What waits for a free place among `outstanding` waits for the server; so does what is never sent, the tail of the
    schedule, if they are taken when the last request leaves.
    """
    rows = observed.rows
    at_ns, done_ns = np.sort(rows["sent_ns"]), np.sort(rows["done_ns"])
    in_flight = np.arange(1, at_ns.size + 1) - np.searchsorted(done_ns, at_ns, side="right")
    free = in_flight < PLACES_FULL * (math.inf if observed.outstanding is None else observed.outstanding)
    lag_ns = at_ns - rows["intended_ns"][np.argsort(rows["sent_ns"], kind="stable")]
    late = int(np.count_nonzero((lag_ns > late_ms * 1e6) & free))
    due = at_ns.size if observed.offsets_ns is None else max(at_ns.size, observed.offsets_ns.size)
    if due > at_ns.size and (not at_ns.size or free[-1]):
        late += due - at_ns.size
    return late / max(1, due)


def late_words(seen: Observed, slo: Slo) -> str:
    """Why a load shows the client and not the server; "" if it shows the server.

    Latency counts from the intended time, so a late client is in it. What waited for a place in flight is the server's.
    """
    late_ms = LATE_SHARE * slo.limit_ms
    share = sent_late(seen, late_ms)
    if share <= min(SENT_LATE, slo.over_allowed):
        return ""
    lag_ns = seen.rows["sent_ns"] - seen.rows["intended_ns"]
    lag_ms = float(np.percentile(lag_ns, 99)) / 1e6 if lag_ns.size else math.inf
    unsent = (seen.offsets_ns.size if seen.offsets_ns is not None else 0) - seen.rows.size
    return (
        f"the client could not keep to the schedule: it sent {share:.1%} of the requests over {late_ms:.3g} ms late or "
        f"never, with places in flight to spare (lag p99 {lag_ms:.3g} ms, {max(0, unsent)} never sent); free its "
        "cores, or add --senders"
    )


def service_latencies(observed: Observed) -> Floats:
    """Seconds from sent to answered of what was sent after warm-up and answered well, in order of completion."""
    rows = observed.rows
    rows = rows[(rows["status"] == Status.OK) & (rows["sent_ns"] >= observed.settled_ns)]
    found: Floats = (rows["done_ns"] - rows["sent_ns"]) / 1e9
    return found


def throughput(observed: Observed, period_ns: int) -> float:
    """Items a second between two ends of batches, after warm-up; batches are `period_ns` apart."""
    done_ns, items = answered(observed.rows)
    done_ns = done_ns[done_ns <= observed.end_ns]
    if done_ns.size < 2:
        return 0.0
    near = np.array([observed.settled_ns, int(done_ns[-1]) - period_ns], dtype=np.int64)
    edges = whole_batch_edges(done_ns, near, period_ns)
    if edges.size < 2:
        return 0.0
    first, last = np.searchsorted(done_ns, edges, side="right")
    return float(items[first:last].sum(dtype=np.int64) / ((edges[1] - edges[0]) / 1e9))


def over_shares(latency_s: Floats, firsts: Numbers, slo: Slo) -> Floats:
    """The share of requests beyond the limit in each segment; request numbers `firsts[i]` to `firsts[i + 1]`."""
    over = np.concatenate(([0], np.cumsum(latency_s > slo.limit_ms / 1e3)))
    shares: Floats = np.diff(over[firsts]) / np.maximum(1, np.diff(firsts))
    return shares


def block_means(latency_s: Floats, firsts: Numbers, slo: Slo) -> Floats:
    """Mean latency of each block in units of the limit, each request's counted up to twice the limit."""
    capped = np.concatenate(([0.0], np.cumsum(np.minimum(latency_s / (slo.limit_ms / 1e3), 2.0))))
    means: Floats = np.diff(capped[firsts]) / np.maximum(1, np.diff(firsts))
    return means


def parts(offsets_s: Floats, from_s: float, to_s: float, count: int) -> Numbers:
    """Numbers of the first request of each of `count` equally long parts, and one past the last."""
    edges: Numbers = np.searchsorted(offsets_s, np.linspace(from_s, to_s, count + 1)).astype(np.int64)
    return edges
