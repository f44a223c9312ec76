"""Every way in which Brim says no, and the exit code that each carries.

    BrimError                    70  a bug, unless a subclass says otherwise
    ├── UsageError                2  a command line, a TOML file or a model that cannot be used as given
    │   └── InvalidRecord         2  a record whose fields contradict each other
    ├── NotReady                  3  the target does not answer, is not ready, or is not ours
    ├── NoValidNumber             4  measured to the end, but the verdict carries no number
    ├── Lost                      5  a server or a worker went away in the middle
    └── NoResource                6  disk, port, memory or a lock is not to be had
    Interrupted             130/143  a signal ended the run; outside the tree, so that no handler of errors swallows it

A failed request is data, never an exception. Messages are one line: what, where, next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: When several variants end differently, the first of these that occurred is the exit code of the command.
EXIT_PRECEDENCE = (70, 130, 143, 5, 6, 3, 2, 4, 7, 1, 0)


class BrimError(Exception):
    """Base of all; `word` is what stands in brackets behind the exit code."""

    exit_code = 70
    word = "bug"


class UsageError(BrimError):
    exit_code = 2
    word = "usage"


class InvalidRecord(UsageError):
    word = "invalid_record"


class NotReady(BrimError):
    exit_code = 3
    word = "not_ready"


class NoValidNumber(BrimError):
    exit_code = 4
    word = "no_valid_number"

    def __init__(self, message: str, *, word: str = "no_valid_number") -> None:
        super().__init__(message)
        self.word = word


class Lost(BrimError):
    exit_code = 5
    word = "server_lost"


class WorkerLost(Lost):
    """A process that sends, here or on another host."""

    word = "worker_lost"


class NoResource(BrimError):
    exit_code = 6
    word = "resources"


class Interrupted(BaseException):
    """A signal ended the run; `signum` is 2 (Ctrl-C) or 15. Like KeyboardInterrupt, not an Exception."""

    word = "aborted"

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.exit_code = 128 + signum


def worst_exit(codes: Iterable[int]) -> int:
    """The exit code that stands for all of them (0 for none)."""
    seen = set(codes)
    return next((code for code in EXIT_PRECEDENCE if code in seen), 70 if seen else 0)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the known names if none is near; never more than a line."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}" if names else "there are none"
