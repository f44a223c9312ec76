"""Does the client's count fit the server's, and rate times latency the requests in flight?

Reads windows and counts, writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brim.records import Status, Window
from judging.rows import Rows
from judging.tolerances import FAILING, LITTLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison: `value` may be at most `bound`."""

    value: float
    bound: float
    text: str

    @property
    def held(self) -> bool:
        return self.value <= self.bound


def items_by_status(rows: Rows) -> dict[Status, int]:
    """Items of a load by how their requests ended."""
    sums = np.bincount(rows["status"], weights=rows["items"], minlength=len(Status))
    return {status: int(sums[status]) for status in Status}


def load_adds_up(items: Mapping[Status, int], inference_count: int) -> Finding:
    """A whole load after its drain: ok ≤ what the server inferred ≤ ok + what may have been inferred unseen.

    Rejected requests never reach the engine; timed-out, cancelled and failed ones may have.
    """
    ok = items[Status.OK]
    most = ok + items[Status.TIMED_OUT] + items[Status.CANCELLED] + items[Status.FAILED]
    outside = max(ok - inference_count, inference_count - most, 0)
    wanted = str(ok) if most == ok else f"{ok} to {most}"
    return Finding(
        value=outside, bound=0, text=f"whole load: server inferred {inference_count} items, clients {wanted}"
    )


def window_adds_up(window: Window) -> Finding | None:
    """One window: client and server differ at most by what is in flight and what passes during the reads.

    None without server statistics. In a closed loop what is in flight between two batches is the concurrency,
    although the answered half may not have been sent again at the very edge. In an open loop a batch may end
    between either edge and its read.
    """
    if window.server is None:
        return None
    requests = max(window.in_flight_start, window.in_flight_end, window.point.concurrency or 0)
    unseen = window.timed_out + window.failed + window.cancelled
    bound = float((requests + unseen) * window.point.items_per_request)
    if window.point.mode == "open":
        bound += 2 * max(map(int, window.server.batch_counts), default=0)
    bound += window.items_per_s * window.server.read_width_ns / 1e9
    apart = abs(window.server.inference_count - window.items_ok)
    text = f"window: server {window.server.inference_count} items, client {window.items_ok}"
    return Finding(value=apart, bound=bound, text=text)


def littles_law(window: Window) -> Finding | None:
    """|N - X W| / N in a closed loop: requests in flight are requests a second times mean latency.

    None in open loop, where N is no input, and where so many fail that X and W speak of different requests.
    """
    n = window.point.concurrency
    if window.point.mode != "closed" or n is None or window.latency_ms is None or window.not_ok_share > FAILING:
        return None
    in_flight = (window.ok + window.timed_out) / window.seconds * window.latency_ms.mean / 1e3
    text = f"Little's law: {in_flight:.2f} of {n} in flight"
    return Finding(value=abs(n - in_flight) / n, bound=LITTLE, text=text)
