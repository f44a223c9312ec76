"""How Brim talks: data on stdout, everything else on stderr, one JSON document if asked for one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from brim import codec

#: Documents that this process has given: the front door gives one in place of a command that could not.
documents = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """The voice of one command, made from its --json, --quiet and -v."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def progress(self, text: str) -> None:
        """What is going on now (stderr; silent with --quiet)."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """What only -v shows (stderr)."""
        if self.verbose:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """What the user must know, --quiet or not (stderr)."""
        print(f"brim: {text}", file=sys.stderr, flush=True)

    def answer(self, text: str) -> None:
        """The result for a person (stdout; silent with --json)."""
        if not self.json:
            print(text, flush=True)

    def document(self, record: Any) -> None:
        """The result for a program: the one JSON document of --json (stdout)."""
        global documents
        if self.json:
            documents += 1
            print(codec.to_json(record, indent=2), flush=True)
