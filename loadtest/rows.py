"""The rows of a run: read in either form, and turned from the workers' files into one when the run closes.

Reads requests/<worker>.bin and requests.parquet in a run's folder; writes requests.parquet.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from brim import codec, disk
from brim.errors import InvalidRecord, NoResource
from brim.records import ROW_HEADER
from judging.rows import ROW_DTYPE, Anchor, Rows, decode

FIELDS: tuple[str, ...] = ROW_DTYPE.names or ()


def close_rows(run: Path) -> Path:
    """Put the rows of every worker into requests.parquet, then remove the workers' files; can be done again."""
    target = run / "requests.parquet"
    anchors, parts = _closed(target)
    for file in _worker_files(run, without=set(anchors)):
        anchor, rows = decode(file.read_bytes(), str(file))
        anchors[file.stem] = anchor
        parts.append(rows)
    rows = _together(parts)
    _save(target, rows, anchors)
    for file in (run / "requests").glob("*.bin"):
        file.unlink()
    return target


def read_rows(run: Path, workers: Collection[int] | None = None) -> Rows:
    """The rows of a run (of these workers), whether it is closed or not; worker by worker, as they were written."""
    anchors, parts = _closed(run / "requests.parquet")
    wanted = None if workers is None else {str(w) for w in workers}
    for file in _worker_files(run, without=anchors):
        if wanted is None or file.stem in wanted:
            parts.append(decode(file.read_bytes(), str(file))[1])
    rows = _together(parts)
    return rows if workers is None else rows[np.isin(rows["worker"], list(workers))]


def read_anchors(run: Path) -> dict[int, Anchor]:
    """The clock anchor of each worker."""
    anchors, _ = _closed(run / "requests.parquet")
    for file in _worker_files(run, without=set(anchors)):
        anchors[file.stem] = decode(file.read_bytes()[: ROW_HEADER.size], str(file))[0]
    return {int(worker): anchor for worker, anchor in anchors.items()}


def _together(parts: Sequence[Rows]) -> Rows:
    """All parts in one array that keeps the padding of ROW_DTYPE, which numpy's own concatenation drops."""
    rows = np.empty(sum(map(len, parts)), ROW_DTYPE).view(Rows)
    end = 0
    for part in parts:
        rows[end : end + len(part)] = part
        end += len(part)
    return rows


def _worker_files(run: Path, *, without: Collection[str]) -> list[Path]:
    """Row files in the order of their workers; one that a kill left without its header holds no row."""
    files = [f for f in (run / "requests").glob("*.bin") if f.stem.isdecimal() and f.stem not in without]
    return sorted((f for f in files if f.stat().st_size >= ROW_HEADER.size), key=lambda f: int(f.stem))


def _closed(parquet: Path) -> tuple[dict[str, Anchor], list[Rows]]:
    if not parquet.exists():
        return {}, []
    try:
        plain = json.loads(pl.read_parquet_metadata(parquet)["anchors"])
        frame = pl.read_parquet(parquet, columns=list(FIELDS))
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError) as error:
        raise InvalidRecord(f"{parquet}: cannot be read ({error}); the run's rows are lost") from error
    rows = np.empty(frame.height, ROW_DTYPE).view(Rows)
    for name in FIELDS:
        rows[name] = frame[name].to_numpy()
    return {worker: codec.build(Anchor, a, where=str(parquet)) for worker, a in plain.items()}, [rows]


def _save(target: Path, rows: npt.NDArray[np.void], anchors: dict[str, Anchor]) -> None:
    frame = pl.DataFrame({name: np.ascontiguousarray(rows[name]) for name in FIELDS})
    with disk.told(target):
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            text = json.dumps({worker: codec.to_plain(a) for worker, a in anchors.items()})
            frame.write_parquet(temporary, compression="zstd", metadata={"anchors": text})
            os.replace(temporary, target)
        except pl.exceptions.PolarsError as error:  # how polars tells of a full disk
            raise NoResource(f"{target}: {error}; free some room, or point --out elsewhere") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
