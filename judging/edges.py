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
    return int(_edges(done_ns, np.array([near_ns]), period_ns)[0])


def whole_batch_edges(done_ns: Nanoseconds, near_ns: Nanoseconds, period_ns: int) -> Nanoseconds:
    """`whole_batch_edge` of each of `near_ns`, without repeats, sorted."""
    return np.unique(_edges(done_ns, near_ns, period_ns))


def _edges(done_ns: Nanoseconds, near_ns: Nanoseconds, period_ns: int) -> Nanoseconds:
    near_ns = np.maximum(near_ns, done_ns[0])  # before the first completion: the end of the first batch
    first = np.searchsorted(done_ns, near_ns, side="right") - 1
    last = np.searchsorted(done_ns, near_ns + period_ns, side="right") - 1
    return done_ns[[_longest_gap(done_ns, int(i), int(j)) for i, j in zip(first, last, strict=True)]]


def _longest_gap(done_ns: Nanoseconds, first: int, last: int) -> int:
    """Which of the completions `first` … `last` the longest gap follows; of the record's last nothing is known."""
    following = done_ns[first + 1 : last + 2]
    if following.size == 0:
        return first
    return first + int((following - done_ns[first : first + following.size]).argmax())


def counted(done_ns: Nanoseconds, items: Counts, edges_ns: Sequence[int] | Nanoseconds) -> npt.NDArray[np.int64]:
    """Items that ended in (a, b] for each two neighbouring edges a, b."""
    total = np.concatenate(([0], np.cumsum(items, dtype=np.int64)))
    counts: npt.NDArray[np.int64] = np.diff(total[np.searchsorted(done_ns, edges_ns, side="right")])
    return counts


def rates(done_ns: Nanoseconds, items: Counts, edges_ns: Sequence[int] | Nanoseconds) -> npt.NDArray[np.float64]:
    """Items a second between each two neighbouring edges."""
    between: npt.NDArray[np.float64] = counted(done_ns, items, edges_ns) / (np.diff(edges_ns) / 1e9)
    return between
