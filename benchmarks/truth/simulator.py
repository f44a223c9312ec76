"""The simulator itself: how fast it is, and whether it says what queueing theory says.

The oracles are tests (tests/unit/test_queueing_*.py), each within four standard errors at a fixed seed; here they are
run as they are.
"""

from __future__ import annotations

import re
import subprocess
import sys

from benchmarks import simulator
from benchmarks.simulator import Found
from benchmarks.truth.journal import Book, Line
from brim import layout

ORACLES = "tests/unit/test_queueing_*.py"
LIMIT_S = 600.0


def run(book: Book) -> None:
    """Speed, then the oracles."""
    for name, server in simulator.servers().items():
        book.add(speed_line(simulator.measured(name, *server)))
    files = sorted(str(file) for file in layout.CHECKOUT.glob(ORACLES))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], cwd=layout.CHECKOUT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    book.add(oracles_line(done.returncode, done.stdout))


def speed_line(found: Found) -> Line:
    """Both bounds are the other benchmark's own."""
    besides = found.bytes_per_request - found.bytes_of_answer
    return Line(
        what=f"simulator, {found.server}, 90% load",
        bound=f"at least {simulator.LEAST_PER_S:,} requests/s, at most {simulator.MOST_BYTES:g} bytes a request",
        measured=f"{min(found.requests_per_s):,.0f} requests/s, {besides:.1f} bytes beside the answer", held=found.held,
    )  # fmt: skip


def oracles_line(code: int, said: str) -> Line:
    """By pytest's last line."""
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing said")
    passed = re.search(r"\b(\d+) passed", last)
    return Line(
        what=f"simulator against theory ({ORACLES})", bound="within 4 standard errors, all of them",
        measured=last.strip("= "), held=code == 0 and passed is not None,
    )  # fmt: skip
