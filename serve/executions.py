"""What served models logged of each batch: the truth of known servers, and where an engine's time went.

Reads <server folder>/executions-<variant>.<instance>.csv and itemised-<variant>.<instance>.csv. May read while the
server is up: a line that is just being written is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brim.errors import InvalidRecord

Execution = tuple[int, int, int]  # start_ns, end_ns, items

_EXECUTION = ("start_ns", "end_ns", "items")
#: Kind of log -> its columns.
_COLUMNS = {
    "executions": _EXECUTION,
    "itemised": (*_EXECUTION, "copy_in_ns", "concatenate_ns", "run_ns", "copy_out_ns"),
}
_NUMBERS = re.compile(r"\d+(?:,\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Itemised:
    """One batch of an engine; what lies between its end and the next one's start is the server's."""

    start_ns: int
    end_ns: int
    items: int
    copy_in_ns: int
    concatenate_ns: int
    run_ns: int
    copy_out_ns: int


def read_executions(server_folder: Path, variant: str) -> list[Execution]:
    """What all instances of a known server logged, by start, warm-up included."""
    return sorted(one for each in executions_by_instance(server_folder, variant).values() for one in each)


def executions_by_instance(server_folder: Path, variant: str) -> dict[str, list[Execution]]:
    """What each instance of a known server logged, warm-up included."""
    logs = _logs(server_folder, variant, "executions")
    return {instance: [(start, end, items) for start, end, items in lines] for instance, lines in logs.items()}


def itemised_by_instance(server_folder: Path, variant: str) -> dict[str, list[Itemised]]:
    """What each instance of an engine logged, warm-up included."""
    logs = _logs(server_folder, variant, "itemised")
    names = _COLUMNS["itemised"]
    return {
        instance: [Itemised(**dict(zip(names, line, strict=True))) for line in lines]
        for instance, lines in logs.items()
    }


def _logs(
    server_folder: Path, variant: str, kind: Literal["executions", "itemised"]
) -> dict[str, list[tuple[int, ...]]]:
    """Instance -> the numbers of each whole line of its log."""
    prefix = f"{kind}-{variant}."
    files = sorted(server_folder.glob(f"{prefix}*.csv"))
    return {file.stem.removeprefix(prefix): _lines(file, _COLUMNS[kind]) for file in files}


def _lines(file: Path, columns: tuple[str, ...]) -> list[tuple[int, ...]]:
    lines = []
    for number, line in enumerate(file.read_text(encoding="ascii").split("\n")[:-1], 1):
        numbers = tuple(map(int, line.split(","))) if _NUMBERS.fullmatch(line) else ()
        if len(numbers) != len(columns):
            raise InvalidRecord(f"{file}:{number}: {line!r} is not {','.join(columns)}; remove the file")
        lines.append(numbers)
    return lines
