"""The requests of some workers of a finished run, from whichever form the run has left them in.

Reads requests.parquet and requests/<worker>.bin of a run, schedule and statistics of an open loop; writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from brim import disk
from brim.errors import InvalidRecord
from brim.records import ROW_HEADER, StatsRead
from judging.edges import Nanoseconds
from judging.rows import ROW_DTYPE, Rows, decode
from judging.windows import by_completion


def read(run: Path, workers: Collection[int]) -> Rows:
    """Rows of these workers by completion; none where the run has kept none. InvalidRecord if they cannot be read."""
    parts = [_of_parquet(run / "requests.parquet", workers)]
    have = set(parts[0]["worker"].tolist())
    for worker in sorted(set(workers) - have):
        file = run / "requests" / f"{worker}.bin"
        if file.is_file() and file.stat().st_size >= ROW_HEADER.size:  # shorter: a kill left it without its header
            parts.append(decode(file.read_bytes(), str(file))[1])
    return by_completion(np.concatenate(parts).view(Rows))


def schedule(run: Path, name: str | None) -> Nanoseconds | None:
    """Arrivals of an open loop, ns from its start, sorted; None where they were not kept, or lie outside the run."""
    file = _inside(run, name)
    if file is None or not file.is_file():
        return None
    try:
        offsets = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidRecord(f"{file}: is no schedule of arrivals ({error})") from error
    if not isinstance(offsets, np.ndarray) or offsets.ndim != 1 or offsets.dtype != np.int64:
        raise InvalidRecord(f"{file}: is no schedule of arrivals: expected one row of int64")
    return np.sort(offsets)


def reads(run: Path, name: str | None) -> list[StatsRead]:
    """The server's statistics beside the open loop of that schedule."""
    file = _inside(run, name)
    return [] if file is None else disk.load_lines(StatsRead, file.with_name("reads.jsonl"))


def _inside(run: Path, name: str | None) -> Path | None:
    file = (run / name).resolve() if name else None
    return file if file is not None and file.is_relative_to(run.resolve()) else None


def _of_parquet(file: Path, workers: Collection[int]) -> Rows:
    if not file.is_file():
        return np.empty(0, ROW_DTYPE).view(Rows)
    names = ROW_DTYPE.names or ()
    try:
        frame = pl.scan_parquet(file).filter(pl.col("worker").is_in(list(workers))).select(names).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidRecord(f"{file}: cannot be read ({error}); the run's rows are lost") from error
    rows = np.empty(frame.height, ROW_DTYPE).view(Rows)
    for name in names:
        rows[name] = frame[name].to_numpy()
    return rows
