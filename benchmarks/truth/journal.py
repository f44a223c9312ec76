"""What a part of the benchmark found: its lines as they come, and a file for each part that has come to its end.

Writes <out>/bench/truth/<part>.json; a part that is there is not measured again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from brim import disk, environment
from brim.errors import NotReady
from brim.records import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One bound and what came of it."""

    what: str
    bound: str
    measured: str
    held: bool | None  # None: nothing is asked of it, or it could not be measured here and `measured` says why
    seconds: float = 0.0  # that it took


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """<part>.json."""

    part: str
    utc: str
    seconds: float
    share: float  # of the time that it should have: below 1 its figures are no truth
    environment: Environment
    lines: tuple[Line, ...]
    figures: Mapping[str, float] = field(default_factory=dict)  # that later parts are held against

    @property
    def missed(self) -> int:
        return sum(line.held is False for line in self.lines)


class Book:
    """One part while it is measured."""

    def __init__(self, part: str, out: Path, *, share: float) -> None:
        self.out, self._journal = out, journal(out, share)
        self.folder = self._journal / part  # for everything that the part writes beside its figures
        self._part, self._share = part, share
        self._lines: list[Line] = []
        self._figures: dict[str, float] = {}
        self._started_s = self._last_s = time.monotonic()

    def scaled(self, full: float, least: float = 2.0) -> float:
        """So many seconds of a load, or so many repeats; fewer where the whole benchmark was shortened."""
        return max(min(least, full), full * self._share)

    def add(self, *lines: Line) -> None:
        """Lines that belong together; the time since the last ones is theirs."""
        now_s = time.monotonic()
        for line in lines:
            self._lines.append(replace(line, seconds=now_s - self._last_s))
            print(f"  {line.what}: {line.measured} ({line.bound or 'no bound'})", file=sys.stderr, flush=True)
        self._last_s = now_s

    def keep(self, **figures: float) -> None:
        """Figures for later parts."""
        self._figures.update(figures)

    def earlier(self, part: str) -> Mapping[str, float]:
        """What an earlier part kept; NotReady if it has not come to its end, or found nothing to keep."""
        found = finished(self._journal, part)
        if found is None or not found.figures:
            raise NotReady(
                f"this needs the figures of {part}; run `python -m benchmarks.truth --part {part} --again` first"
            )
        return found.figures

    def close(self) -> Found:
        """The part is done: its file."""
        found = Found(
            part=self._part,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._started_s,
            share=self._share,
            environment=environment.describe({}),
            lines=tuple(self._lines),
            figures=self._figures,
        )
        disk.save(_file(self._journal, self._part), found)
        return found


def journal(out: Path, share: float) -> Path:
    """The folder of the parts; what was shortened is kept apart, for its figures are no truth."""
    return out / "bench" / ("truth" if share == 1 else "truth-shortened")


def finished(folder: Path, part: str) -> Found | None:
    """What the part found, if it has come to its end."""
    file = _file(folder, part)
    return disk.load(Found, file) if file.exists() else None


def forget(folder: Path, part: str) -> None:
    """It is to be measured again: a figure that is out of date must not stand for it."""
    _file(folder, part).unlink(missing_ok=True)


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def within(what: str, measured: float | None, truth: float | None, share: float, unit: str = "") -> Line:
    """A figure that may be off by so large a share of the truth; one that is not there is off."""
    if measured is None or truth is None:
        return Line(what=what, bound=f"within {share:.0%}", measured="no figure", held=False)
    off = measured / truth - 1
    return Line(
        what=what,
        bound=f"within {share:.0%} of {truth:.4g}{unit}",
        measured=f"{measured:.4g}{unit} ({off:+.2%})",
        held=abs(off) <= share,
    )


def at_most(what: str, measured: float | None, bound: float, unit: str = "") -> Line:
    """A figure that may be no larger than that; one that is not there is too large."""
    told = "no figure" if measured is None else f"{measured:.3g}{unit}"
    return Line(
        what=what, bound=f"at most {bound:g}{unit}", measured=told, held=measured is not None and measured <= bound
    )  # fmt: skip


def told(what: str, measured: str) -> Line:
    """What stands beside, without a bound."""
    return Line(what=what, bound="", measured=measured, held=None)


def table(found: Sequence[Found]) -> str:
    """A line for each bound of each part."""
    head = ("part", "what", "bound", "measured", "", "s")
    rows = [head, *(_row(one, line) for one in found for line in one.lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(found: Found, line: Line) -> tuple[str, ...]:
    verdict = {True: "held", False: "MISSED", None: ""}[line.held]
    return found.part, line.what, line.bound, line.measured, verdict, f"{line.seconds:.0f}"
