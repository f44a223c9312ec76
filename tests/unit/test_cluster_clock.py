"""A foreign clock: its offset by arithmetic on simulated channels, and rows turned into our time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from brim.errors import InvalidRecord
from brim.records import ROW, ROW_HEADER, ROW_MAGIC, ROW_SCHEMA, Status
from judging.rows import decode
from loadtest.cluster_clock import Clock, Round, drift, header_in_our_time, measured, rows_in_our_time


def rounds(offset_ns: int, there_ns: list[int], back_ns: list[int], *, asked_ns: int = 10**12) -> list[Round]:
    """Questions over a channel that takes so long there and so long back, to a clock that reads ours + offset."""
    return [
        Round(
            asked_ns=asked_ns + i * 10**6,
            answered_ns=asked_ns + i * 10**6 + there + offset_ns,
            heard_ns=asked_ns + i * 10**6 + there + back,
        )
        for i, (there, back) in enumerate(zip(there_ns, back_ns, strict=True))
    ]


@pytest.mark.parametrize("offset_ns", [0, 12_345_678_901, -7_000_000_000_000])
def test_over_an_even_channel_the_offset_is_exact(offset_ns: int) -> None:
    clock = measured(rounds(offset_ns, [300_000, 50_000], [300_000, 50_000]))
    assert (clock.offset_ns, clock.uncertainty_ns) == (offset_ns, 50_000)


def test_the_shortest_round_trip_decides_and_not_the_mean() -> None:
    clock = measured(rounds(5_000, [9_000_000, 40_000, 2_000_000], [100_000, 40_000, 100_000]))
    assert (clock.offset_ns, clock.uncertainty_ns) == (5_000, 40_000)


def test_an_uneven_channel_errs_by_half_the_difference_which_the_uncertainty_covers() -> None:
    clock = measured(rounds(1_000_000, [900_000], [100_000]))
    assert clock.offset_ns - 1_000_000 == (900_000 - 100_000) // 2
    assert clock.uncertainty_ns == 500_000


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_delays_the_true_offset_lies_within_the_uncertainty(seed: int) -> None:
    dice = random.Random(seed)
    true_ns = dice.randrange(-(10**13), 10**13)
    there, back = ([int(dice.expovariate(1 / mean)) for _ in range(30)] for mean in (200_000, 3_000_000))
    clock = measured(rounds(true_ns, there, back))
    assert abs(clock.offset_ns - true_ns) <= clock.uncertainty_ns


def test_a_clock_and_its_drift_read_as_milliseconds_with_their_uncertainty() -> None:
    first = Clock(offset_ns=12_345_000, uncertainty_ns=200_000, at_ns=0)
    last = Clock(offset_ns=12_445_000, uncertainty_ns=100_000, at_ns=60_000_000_000)
    assert str(first) == "+12.345 ms (±0.200 ms)"
    assert drift(first, last) == "+0.100 ms (±0.300 ms) in 60 s"


def test_rows_of_another_clock_become_rows_of_ours_and_keep_everything_else() -> None:
    offset_ns = 5_000_000_000
    theirs = b"".join(
        ROW.pack(t + offset_ns, t + offset_ns, t + offset_ns + 700, 4, 9, Status.TIMED_OUT)
        for t in range(100, 900, 100)
    )
    header = ROW_HEADER.pack(ROW_MAGIC, ROW_SCHEMA, 1_700_000_000_000_000_000, 42 + offset_ns)
    anchor, rows = decode(header_in_our_time(header, offset_ns) + rows_in_our_time(theirs, 9, offset_ns), "here")
    assert (anchor.unix_ns, anchor.monotonic_ns) == (1_700_000_000_000_000_000, 42)
    assert rows["sent_ns"].tolist() == list(range(100, 900, 100))
    assert np.array_equal(rows["done_ns"] - rows["sent_ns"], np.full(8, 700))
    assert {(r["items"], r["worker"], r["status"]) for r in rows} == {(4, 9, Status.TIMED_OUT)}


def test_no_rows_are_no_rows() -> None:
    assert rows_in_our_time(b"", 1, 7) == b""


def test_half_a_row_and_rows_of_another_worker_are_refused() -> None:
    row = ROW.pack(1, 1, 2, 1, 3, 0)
    with pytest.raises(InvalidRecord, match="whole rows"):
        rows_in_our_time(row[:-1], 3, 0)
    with pytest.raises(InvalidRecord, match="another worker"):
        rows_in_our_time(row, 4, 0)
