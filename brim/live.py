"""One line at the foot of a terminal that says how far a command is and how long it will still take.

Writes to the terminal alone. Nothing about the terminal is changed (no hidden cursor, no other screen, no thread), so
that nothing need be put back after a crash or a kill: at worst a line of text stays behind.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.text import Text

#: Drawn no more often than this: a terminal over a slow connection is not flooded.
_EVERY_S = 0.1
#: A smaller share of the work says nothing of how long the rest takes.
_TELLING = 0.02
#: Cells of the bar; a narrow terminal has fewer to spare.
_BAR = 24


class LiveLine:
    """Draws over itself until it is cleared; `stream` must be a terminal."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._clock = clock
        self._started = clock()
        self._drawn_at = -_EVERY_S
        self._line: Text | None = None
        self._cells = 0  # of what stands on the terminal

    def update(self, share: float, text: str) -> None:
        """Say that `share` (0 to 1) of the work is done and what is going on."""
        share = min(1.0, max(0.0, share))
        self._line = self._made(share, text)
        now = self._clock()
        if now - self._drawn_at >= _EVERY_S:
            self._drawn_at = now
            self.draw()

    def draw(self) -> None:
        """Put the line (back) where the cursor is."""
        self.clear()
        if self._line is None:
            return
        width = max(1, self._width() - 3)  # room for ^C: a line that wraps leaves a row behind
        line = self._line.copy()
        line.truncate(width, overflow="ellipsis")
        with contextlib.suppress(OSError):  # a terminal that is gone takes no measurement with it
            self._console.print(line, end="", soft_wrap=True)
            self._stream.flush()
        self._cells = line.cell_len

    def clear(self) -> None:
        """Take it off the terminal; after a resize it may stand on several rows."""
        rows = max(0, self._cells - 1) // max(1, self._width())
        if self._cells:
            with contextlib.suppress(OSError):
                self._stream.write((f"\x1b[{rows}A" if rows else "") + "\r\x1b[J")
                self._stream.flush()
        self._cells = 0

    def _made(self, share: float, text: str) -> Text:
        bar = min(_BAR, self._width() // 5)
        full = round(share * bar)
        on, off = ("━", "─") if "utf" in (self._stream.encoding or "").lower() else ("#", "-")
        line = Text.assemble((on * full, "cyan"), (off * (bar - full), "dim"), f" {share:4.0%}  ")
        return line.append(f"{self._left(share)}  ", style="bold").append(" ".join(text.split()))

    def _left(self, share: float) -> str:
        if share < _TELLING:
            return "time left unknown"
        return f"about {duration((self._clock() - self._started) * (1 - share) / share)} left"

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `1 h 20 min`: as fine as an estimate can be believed."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5)):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
