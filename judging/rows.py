"""What the bytes of a row file mean: one fixed-size row per request behind a header with the clock anchor.

Reads bytes, writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from brim.errors import InvalidRecord
from brim.records import ROW, ROW_HEADER, ROW_MAGIC, ROW_SCHEMA

#: brim.records.ROW as numpy sees it (the last three bytes of a row are padding).
ROW_DTYPE = np.dtype(
    {
        "names": ["intended_ns", "sent_ns", "done_ns", "items", "worker", "status"],
        "formats": ["<i8", "<i8", "<i8", "<u2", "<u2", "u1"],
        "offsets": [0, 8, 16, 24, 26, 28],
        "itemsize": ROW.size,
    }
)

# To numpy's own types a column may have any name and any dtype. Here reading a misspelt one is an error, and what is
# computed of the others has a type (found many times as fast: against an unknown dtype mypy tries every overload).
if TYPE_CHECKING:

    class Rows(np.ndarray[tuple[int], np.dtype[np.void]]):
        """A request each, (n,) of ROW_DTYPE; `.view(Rows)` says so of what numpy made, without a copy of its rows."""

        @overload  # type: ignore[override]
        def __getitem__(self, key: Literal["intended_ns", "sent_ns", "done_ns"], /) -> npt.NDArray[np.int64]: ...
        @overload
        def __getitem__(self, key: Literal["items", "worker"], /) -> npt.NDArray[np.uint16]: ...
        @overload
        def __getitem__(self, key: Literal["status"], /) -> npt.NDArray[np.uint8]: ...
        @overload
        def __getitem__(self, key: int, /) -> np.void: ...
        @overload
        def __getitem__(self, key: slice | npt.NDArray[np.bool_ | np.integer[Any]], /) -> Rows: ...
        def __getitem__(self, key: Any, /) -> Any: ...
else:
    Rows = np.ndarray  # no class of its own when running


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The same instant on two clocks, read together when the worker began."""

    unix_ns: int
    monotonic_ns: int


def decode(data: bytes, where: str) -> tuple[Anchor, Rows]:
    """The anchor and the whole rows of a row file; a last row that was cut off by a kill is left out."""
    if len(data) < ROW_HEADER.size:
        raise InvalidRecord(f"{where}: {len(data)} bytes are less than a header; the worker ended before it began")
    magic, schema, unix_ns, monotonic_ns = ROW_HEADER.unpack_from(data)
    if magic != ROW_MAGIC:
        raise InvalidRecord(f"{where}: not a row file; take it out of the folder")
    if schema > ROW_SCHEMA:
        raise InvalidRecord(f"{where}: schema {schema}, this Brim reads up to {ROW_SCHEMA}; use the newer Brim")
    count = (len(data) - ROW_HEADER.size) // ROW.size
    rows = np.frombuffer(data, ROW_DTYPE, count=count, offset=ROW_HEADER.size).view(Rows)
    return Anchor(unix_ns=unix_ns, monotonic_ns=monotonic_ns), rows
