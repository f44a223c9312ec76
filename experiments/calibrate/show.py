"""A calibration as a table for people and as a document for programs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brim import codec
from brim.records import CalibrationRow, Overheads

NAMES: Mapping[str, str] = {"locust": "Locust", "perf_analyzer": "perf_analyzer", "loadgen": "LoadGen"}


def document(rows: Sequence[CalibrationRow]) -> dict[str, Any]:
    """The rows with what follows from them."""
    return {
        "rows": [
            {**codec.to_plain(row), "error_fraction": row.error_fraction, "holds": row.holds} for row in rows
        ]
    }  # fmt: skip


def line(row: CalibrationRow) -> str:
    """`capacity at 16 in flight, items/s: 386.9, truth 387.1 (-0.05%)`."""
    wrong = "" if row.holds else f", MORE THAN {row.bound:.0%}"
    return f"{row.quantity}: {_number(row.measured)}, truth {_number(row.truth)} ({_error(row)}{wrong})"


def overheads(frozen: Overheads) -> str:
    """What the simulator is told of a batch beyond its logged time."""
    return (
        f"frozen overheads: {frozen.occupancy_ms:.2f} ms + {frozen.occupancy_per_item_ms:.3f} ms an item of occupancy, "
        f"{frozen.additive_ms:.2f} ms of transport"
    )


def table(rows: Sequence[CalibrationRow]) -> str:
    """A line for each quantity of each server; each generator stands beside the log of the time that it measured in."""
    generators = [name for name in NAMES if any(row.generator == name for row in rows)]
    asked: dict[tuple[str, str], dict[str, CalibrationRow]] = {}
    for row in rows:
        asked.setdefault((row.server, row.quantity), {})[row.generator] = row
    heads = ["server", "quantity"]
    for name in generators:
        heads += ["truth", NAMES[name]]
    lines = [[*heads, "error", "holds"]]
    for (server, quantity), found in asked.items():
        lines.append([server, quantity, *_cells(generators, found)])
    return _aligned(lines)


def _cells(generators: Sequence[str], found: Mapping[str, CalibrationRow]) -> list[str]:
    pairs = [text for name in generators for text in _pair(found.get(name))]
    errors = " ".join(_error(found[name]) for name in generators if name in found)
    return [*pairs, errors, "yes" if all(row.holds for row in found.values()) else "NO"]


def _pair(row: CalibrationRow | None) -> tuple[str, str]:
    return ("", "") if row is None else (_number(row.truth), _number(row.measured))


def _number(value: float | None) -> str:
    """Four digits: what is held against 1% must show more than that."""
    if value is None:
        return "none"
    return f"{value:,.{max(0, 3 - len(str(int(value)))) + (value < 1000)}f}"


def _error(row: CalibrationRow) -> str:
    return "none" if row.error_fraction is None else f"{row.error_fraction:+.2%}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
