"""Where a window may begin and end: completion instants between batches, so that whole batches are counted.

Reads sorted completion instants, writes nothing. All instants are CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Nanoseconds: TypeAlias = npt.NDArray[np.int64]
Counts: TypeAlias = npt.NDArray[np.integer[Any]]


def whole_batch_edge(done_ns: Nanoseconds, near_ns: int, period_ns: int) -> int:
    """The completion instant near `near_ns` that ends a batch; `done_ns` is sorted and not empty.

    The answers of one batch arrive together, so a batch ends where the longest gap follows. Candidates are
    the last completion up to `near_ns` (its gap covers `near_ns`) and those within one batch period after it.
    """
    first = int(np.searchsorted(done_ns, near_ns, side="right")) - 1
    if first < 0:
        return whole_batch_edge(done_ns, int(done_ns[0]), period_ns)
    last = int(np.searchsorted(done_ns, near_ns + period_ns, side="right")) - 1
    gaps = np.diff(done_ns[first : last + 2])  # nothing is known of the gap after the record's last completion
    return int(done_ns[first + int(np.argmax(gaps))]) if gaps.size else int(done_ns[first])


def whole_batch_edges(done_ns: Nanoseconds, near_ns: Nanoseconds, period_ns: int) -> Nanoseconds:
    """`whole_batch_edge` of each of `near_ns`, without repeats, sorted."""
    return np.unique([whole_batch_edge(done_ns, int(near), period_ns) for near in near_ns]).astype(np.int64)


def counted(done_ns: Nanoseconds, items: Counts, edges_ns: Sequence[int] | Nanoseconds) -> npt.NDArray[np.int64]:
    """Items that ended in (a, b] for each two neighbouring edges a, b."""
    total = np.concatenate(([0], np.cumsum(items, dtype=np.int64)))
    counts: npt.NDArray[np.int64] = np.diff(total[np.searchsorted(done_ns, edges_ns, side="right")])
    return counts


def rates(done_ns: Nanoseconds, items: Counts, edges_ns: Sequence[int] | Nanoseconds) -> npt.NDArray[np.float64]:
    """Items a second between each two neighbouring edges."""
    between: npt.NDArray[np.float64] = counted(done_ns, items, edges_ns) / (np.diff(edges_ns) / 1e9)
    return between
