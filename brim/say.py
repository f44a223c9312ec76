"""How Brim talks: data on stdout, everything else on stderr, one JSON document if asked for one.

On a terminal one live line may stand at the foot of stderr; whatever else is said goes above it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brim import codec

if TYPE_CHECKING:
    from brim.live import LiveLine

#: Documents that this process has given: the front door gives one in place of a command that could not.
documents = 0
#: The line that stands at the foot of the terminal now; there is one terminal, and so one line.
_line: LiveLine | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """The voice of one command, made from its --json, --quiet and -v."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def progress(self, text: str) -> None:
        """What is going on now (stderr; silent with --quiet)."""
        if not self.quiet:
            with _above():
                print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """What only -v shows (stderr)."""
        if self.verbose:
            with _above():
                print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """What the user must know, --quiet or not (stderr)."""
        with _above():
            print(f"brim: {text}", file=sys.stderr, flush=True)

    def answer(self, text: str) -> None:
        """The result for a person (stdout; silent with --json); on a terminal, lines break between words."""
        if not self.json:
            with _above():
                print(_fitted(text), flush=True)

    def document(self, record: Any) -> None:
        """The result for a program: the one JSON document of --json (stdout)."""
        global documents
        if self.json:
            documents += 1
            with _above():
                print(codec.to_json(record, indent=2), flush=True)

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[float, str], None]]:
        """While the block runs, `update(share, text)` keeps a line with the time left at the foot of the terminal.

        `share` is how much of the whole work is done (0 to 1), `text` what is going on. Where stderr is no terminal,
        with --quiet and with TERM=dumb nothing is drawn: `progress` then says it line by line.
        """
        global _line
        if self.quiet or not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
            yield lambda share, text: None
            return
        from brim.live import LiveLine  # rich takes a tenth of a second, and pipes need none of it

        _line = line = LiveLine(sys.stderr)
        try:
            yield line.update
        finally:
            _line = None
            line.clear()


@contextlib.contextmanager
def _above() -> Iterator[None]:
    """Print above the live line, if there is one."""
    if _line is None:
        yield
        return
    _line.clear()
    yield
    _line.draw()


def _fitted(text: str) -> str:
    """Lines that are wider than the terminal, broken between words and indented under themselves."""
    if not sys.stdout.isatty():
        return text
    width = os.get_terminal_size(sys.stdout.fileno()).columns
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        fits = len(line) <= width or width < 2 * len(indent)
        wrapped = [line] if fits else textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        lines += wrapped
    return "\n".join(lines)
