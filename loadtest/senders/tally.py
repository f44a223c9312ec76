"""What a sender keeps of its requests: a row each, counts, the texts of errors and a few whole answers.

Writes requests/<worker>.bin and sample-<worker>-<n>.bin.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from brim import disk
from brim.records import ROW, ROW_HEADER, ROW_MAGIC, ROW_SCHEMA, Status
from loadtest.driver import Sample

BUFFERED_ROWS = 64 * 2**10  # 2 MiB; at 20,000 requests/s three times what the flush of each second finds
TEXTS_MAX = 20
OTHER_TEXTS = "other errors"


def row_file(requests: Path, worker: int) -> Path:
    return requests / f"{worker}.bin"


def result_file(folder: Path, worker: int) -> Path:
    return folder / f"result-{worker}.json"


class RowFile:
    """One worker's row file: rows are packed into a fixed buffer, and appended to the file when flushed.

    A failed flush (disk full) raises NoResource; the counts stay right, the rows since the last flush are lost.
    """

    def __init__(self, path: Path, worker: int, items: int) -> None:
        self._worker, self._items, self._path = worker, items, path
        self._buffer, self._end = bytearray(BUFFERED_ROWS * ROW.size), 0
        self.counts = [0] * len(Status)
        disk.make_folder(path.parent)
        with disk.told(path):
            self._stream = path.open("xb", buffering=0)
            self._stream.write(ROW_HEADER.pack(ROW_MAGIC, ROW_SCHEMA, time.time_ns(), time.monotonic_ns()))

    def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None:
        """Record one request that has ended."""
        ROW.pack_into(self._buffer, self._end, intended_ns, sent_ns, done_ns, self._items, self._worker, status)
        self._end += ROW.size
        if self._end == len(self._buffer):
            self.flush()

    def flush(self) -> None:
        """Count and append what was recorded since the last flush."""
        rows = bytes(memoryview(self._buffer)[: self._end])
        self._end = 0
        statuses = rows[ROW.size - 4 :: ROW.size]  # the status byte stands before three bytes of padding
        for status in Status:
            self.counts[status] += statuses.count(status)
        try:
            with disk.told(self._path):
                while rows:
                    rows = rows[self._stream.write(rows) or 0 :]
        finally:
            if rows:
                self._drop_torn_row()

    def _drop_torn_row(self) -> None:
        """A disk that filled up in the middle of a row, and later has room again, must not shift all rows behind it."""
        size = os.fstat(self._stream.fileno()).st_size
        torn = (size - ROW_HEADER.size) % ROW.size
        if torn:
            with contextlib.suppress(OSError):  # what is told is that the disk is full
                os.ftruncate(self._stream.fileno(), size - torn)
                self._stream.seek(size - torn)

    def close(self) -> None:
        """Flush and make sure that the rows survive a power cut."""
        try:
            self.flush()
            with disk.told(self._path):
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()


class Texts:
    """How often each error text was seen; only so many different ones are told apart."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, text: str) -> None:
        if text not in self.counts and len(self.counts) >= TEXTS_MAX:
            text = OTHER_TEXTS
        self.counts[text] = self.counts.get(text, 0) + 1


class Samples:
    """Up to `wanted` answers spread over a run whose length nobody knows, and over the payloads.

    Answers are taken at a fixed pace; when there are too many, every second one goes and the pace halves.
    """

    def __init__(self, wanted: int, payloads: int, start_ns: int, pace_ns: int = 100_000_000) -> None:
        self._wanted, self._payloads, self._pace_ns = wanted, payloads, pace_ns
        self._seen: set[int] = set()  # payloads sampled in this round through the pool
        self.kept: list[tuple[int, int | None, bytes]] = []  # payload, length of the JSON head (None: gRPC), body
        #: An answer that is done before this instant is not looked at (the one comparison on the hot path).
        self.due_ns = start_ns if wanted > 0 else 2**63

    def offer(self, done_ns: int, payload: int, json_bytes: int | None, body: bytes) -> None:
        """Keep this answer if its payload's turn has come."""
        if payload in self._seen:
            return
        self._seen.add(payload)
        if len(self._seen) >= self._payloads:
            self._seen.clear()
        self.kept.append((payload, json_bytes, body))
        if len(self.kept) > self._wanted:
            self.kept = self.kept[::2][: self._wanted]
            self._pace_ns *= 2
        self.due_ns = done_ns + self._pace_ns

    def write(self, folder: Path, worker: int) -> tuple[Sample, ...]:
        """Put the kept answers into files."""
        samples = []
        for number, (payload, json_bytes, body) in enumerate(self.kept):
            file = folder / f"sample-{worker}-{number}.bin"
            with disk.told(file):
                file.write_bytes(body)
            samples.append(Sample(payload=payload, file=file.name, json_bytes=json_bytes))
        return tuple(samples)
