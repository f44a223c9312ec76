"""Rows on disk: what a worker wrote is what a reader gets, in either form, a kill notwithstanding."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import InvalidRecord, NoResource
from brim.records import ROW, ROW_HEADER, ROW_MAGIC, Status
from judging.rows import ROW_DTYPE, Anchor, decode
from loadtest import rows as row_files
from loadtest.senders.tally import BUFFERED_ROWS, RowFile

HEADER = ROW_HEADER.pack(ROW_MAGIC, 1, 1_700_000_000, 99)
NANOSECONDS = st.integers(0, 2**63 - 1)
ROWS = st.tuples(
    NANOSECONDS, NANOSECONDS, NANOSECONDS, st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.sampled_from(Status)
)


@given(st.lists(ROWS, max_size=20), st.integers(0, ROW.size - 1))
def test_decoding_gives_back_every_whole_row(written: list[tuple[int, ...]], cut: int) -> None:
    data = HEADER + b"".join(ROW.pack(*row) for row in written)
    whole = data + ROW.pack(1, 2, 3, 4, 5, 0)[:cut]
    anchor, found = decode(whole, "here")
    assert anchor == Anchor(unix_ns=1_700_000_000, monotonic_ns=99)
    assert [tuple(row) for row in found.tolist()] == [tuple(row) for row in written]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "less than a header"),
        (HEADER[:-1], "less than a header"),
        (b"X" + HEADER[1:], "not a row file"),
        (ROW_HEADER.pack(ROW_MAGIC, 2, 0, 0), "schema 2, this Brim reads up to 1"),
    ],
)
def test_what_is_no_row_file_is_refused_by_name(data: bytes, told: str) -> None:
    with pytest.raises(InvalidRecord, match=f"3.bin: .*{told}"):
        decode(data, "3.bin")


def write(run: Path, worker: int, count: int, *, items: int = 2) -> None:
    file = RowFile(run / "requests" / f"{worker}.bin", worker, items)
    for n in range(count):
        file.add(n, n + 1, n + 2, Status(n % len(Status)))
    file.close()
    assert sum(file.counts) == count


def test_a_worker_counts_what_it_wrote_by_status(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "0.bin", 0, 1)
    ended = [Status.OK] * 5 + [Status.REJECTED] * 4 + [Status.TIMED_OUT] * 3 + [Status.FAILED] * 2 + [Status.CANCELLED]
    for status in ended:
        file.add(1, 1, 2, status)
    file.close()
    assert file.counts == [5, 4, 3, 2, 1]
    assert decode((tmp_path / "0.bin").read_bytes(), "")[1]["status"].tolist() == [s.value for s in ended]


def test_more_rows_than_the_buffer_holds_all_arrive(tmp_path: Path) -> None:
    write(tmp_path, 0, BUFFERED_ROWS + 1)
    assert row_files.read_rows(tmp_path)["sent_ns"].tolist() == list(range(1, BUFFERED_ROWS + 2))


def test_rows_are_the_same_before_and_after_the_run_closes(tmp_path: Path) -> None:
    write(tmp_path, 10, 7)
    write(tmp_path, 2, 5)
    before, anchors = row_files.read_rows(tmp_path), row_files.read_anchors(tmp_path)
    assert before["worker"].tolist() == [2] * 5 + [10] * 7
    parquet = row_files.close_rows(tmp_path)
    assert row_files.read_rows(tmp_path).dtype == ROW_DTYPE
    assert np.array_equal(row_files.read_rows(tmp_path), before)
    assert row_files.read_anchors(tmp_path) == anchors
    assert list((tmp_path / "requests").iterdir()) == []
    assert pl.read_parquet(parquet)["worker"].to_list() == before["worker"].tolist()


def test_rows_of_some_workers_are_picked_in_either_form(tmp_path: Path) -> None:
    for worker in (0, 1, 2):
        write(tmp_path, worker, 3 + worker)
    open_run = row_files.read_rows(tmp_path, [0, 2])
    row_files.close_rows(tmp_path)
    assert open_run["worker"].tolist() == [0] * 3 + [2] * 5
    assert np.array_equal(row_files.read_rows(tmp_path, [0, 2]), open_run)
    assert len(row_files.read_rows(tmp_path, [])) == 0


def test_a_kill_between_closing_and_removing_counts_no_row_twice(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    left = (tmp_path / "requests" / "0.bin").read_bytes()
    row_files.close_rows(tmp_path)
    (tmp_path / "requests" / "0.bin").write_bytes(left)
    write(tmp_path, 1, 3)
    assert len(row_files.read_rows(tmp_path)) == 8
    row_files.close_rows(tmp_path)
    assert len(row_files.read_rows(tmp_path)) == 8
    assert sorted(row_files.read_anchors(tmp_path)) == [0, 1]


def test_a_worker_that_was_killed_before_its_header_has_no_rows(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    (tmp_path / "requests" / "1.bin").write_bytes(HEADER[:7])
    assert len(row_files.read_rows(tmp_path)) == 5
    row_files.close_rows(tmp_path)
    assert len(row_files.read_rows(tmp_path)) == 5


def test_a_run_without_any_row_closes_empty(tmp_path: Path) -> None:
    assert len(row_files.read_rows(tmp_path)) == 0
    row_files.close_rows(tmp_path)
    assert len(row_files.read_rows(tmp_path)) == 0


def test_a_parquet_that_was_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "requests.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InvalidRecord, match=r"requests\.parquet: cannot be read"):
        row_files.read_rows(tmp_path)


def test_two_loads_never_write_to_the_same_row_file(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    with pytest.raises(NoResource, match=r"0\.bin"):
        RowFile(tmp_path / "requests" / "0.bin", 0, 1)
    assert len(row_files.read_rows(tmp_path)) == 5


class FullOnce:
    """A stream on whose disk only ten bytes of one write find room, and then everything again."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._full = stream, True

    def write(self, data: bytes) -> int:
        if not self._full:
            return int(self._stream.write(data))
        if len(data) > 10:
            return int(self._stream.write(data[:10]))
        self._full = False
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_row_that_a_full_disk_tore_does_not_shift_those_that_found_room_later(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "0.bin", 0, 1)
    file._stream = FullOnce(file._stream)  # type: ignore[assignment]
    file.add(1, 1, 2, Status.OK)
    with pytest.raises(NoResource, match="no room left"):
        file.flush()
    file.add(3, 3, 4, Status.OK)
    file.close()
    _, rows = decode((tmp_path / "0.bin").read_bytes(), "here")
    assert rows["done_ns"].tolist() == [4]
    assert file.counts[Status.OK] == 2, "both ended, whatever the disk kept"
