"""From a load's rows and reads to its windows: where it is steady, and how long a batch takes. Pure.

The same functions while a load is running and on the files of a finished run.
"""

from __future__ import annotations

from collections.abc import Sequence

from brim.records import LoadPoint, StatsRead, Window
from judging.backlog import open_steady
from judging.rows import Rows
from judging.steady import Steady, first_fifth, steady
from judging.tolerances import STEADY_SHORT_WARMUP_SHARE
from judging.windows import Generator, answered, batch_period_ns, cut_windows
from loadtest.statistics_reader import INTERVAL_S

#: A read comes an interval after the one before it was answered, and a batch or two later than that on a full machine.
LATE_READS = 1.1


def enough_seconds(window_s: float, batch_period_s: float) -> float:
    """Seconds of sending behind whose first fifth a window of `window_s` surely fits.

    A window begins and ends at reads: an interval is lost at either end, and a batch in moving to whole batches.
    """
    behind_s = window_s + 2 * LATE_READS * INTERVAL_S + batch_period_s
    return behind_s / (1 - STEADY_SHORT_WARMUP_SHARE)


#: Windows begin and end at reads, a second apart: an open loop's takes at least so much of what follows its warm-up.
OPEN_SHARE = 0.7


def period_ns(rows: Rows, reads: Sequence[StatsRead]) -> int:
    """From batch to batch while the load was sending; 1 if nothing was sent."""
    sent_ns = rows["sent_ns"]
    if not len(rows):
        return 1
    return batch_period_ns(reads, rows, from_ns=int(sent_ns.min()), until_ns=int(sent_ns.max()))


def windows_of(
    rows: Rows,
    reads: Sequence[StatsRead],
    *,
    generator: Generator,
    point: LoadPoint,
    min_seconds: float,
    min_batches: int,
    max_seconds: float,
    until_ns: int | None = None,
    unsent: int = 0,
) -> list[Window]:
    """The windows of a load (rows by completion), from where it is steady to `until_ns`, or where sending stopped.

    `unsent`: requests of an open loop that were due and never sent.
    """
    done_ns, items = answered(rows)
    if not len(done_ns):
        return []
    start_ns, last_ns = int(rows["sent_ns"].min()), int(rows["sent_ns"].max())
    until_ns = last_ns if until_ns is None else min(until_ns, last_ns)
    batch_ns = batch_period_ns(reads, rows, from_ns=start_ns, until_ns=until_ns)
    if point.mode == "open":
        state = open_steady(rows, reads, start_ns=start_ns, end_ns=until_ns, slots=point.slots, unsent=unsent)
        min_seconds = min(min_seconds, OPEN_SHARE * (until_ns - state.from_ns) / 1e9)  # it lasts as long as was asked
    else:
        state = steady(done_ns, items, start_ns=start_ns, end_ns=until_ns, period_ns=batch_ns)

    def windows_from(state: Steady) -> list[Window]:
        return cut_windows(
            rows, reads, generator=generator, point=point, steady=state, until_ns=until_ns, period_ns=batch_ns,
            min_seconds=min_seconds, min_batches=min_batches, max_seconds=max_seconds,
        )  # fmt: skip

    windows = windows_from(state)
    if generator == "perf_analyzer" and not any(w.kind == "measured" for w in windows):
        # It cannot be told to go on until a window fits behind the cut; the server is warm from the load before it.
        return windows_from(first_fifth(state, start_ns, until_ns))
    return windows
