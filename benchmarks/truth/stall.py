"""A server that freezes once: the open loop must show it, the closed loop cannot, and the page must say why.

A fresh server for each load, as it freezes once only.
"""

from __future__ import annotations

import html
import re

import numpy as np

from benchmarks.served import Served
from benchmarks.truth.journal import Book, Line
from benchmarks.truth.loads import brim_loadtest, closed, fresh
from brim import layout
from brim.records import Status
from experiments.calibrate.plan import variant
from judging.rows import Rows
from judging.slo_observed import Floats, service_latencies
from loadtest.rows import read_rows

RATE, LOAD_S, STALL_S = 100.0, 40.0, 1.0
PERCENTILE = 99.5
IN_FLIGHT = 2  # about what that rate needs
#: Of the stall: from so much on the percentile shows it, up to so much it does not.
SHOWS, HIDES = 0.5, 0.1
#: What the page must say, in its own words: tags and line ends count for nothing.
SAID = ("closed loop", "sends nothing while it waits", "would not show")


def run(book: Book) -> None:
    """Both loads."""
    seconds = book.scaled(LOAD_S, least=6.0)
    at_s = seconds / 2  # behind the warm-up of the closed loop, too
    parameters = {"service_ms": 10.0, "at_s": at_s, "stall_ms": STALL_S * 1e3}
    stalls = variant("stall", parameters, max_batch=8, instances=1)
    with fresh(stalls, book.folder / "open") as on:
        rows, page = _open(on, seconds)
    book.add(open_line(from_intended(rows)), page_line(page))
    with fresh(stalls, book.folder / "closed") as on:
        seen = 1e3 * service_latencies(closed(on, IN_FLIGHT, seconds=seconds))
    book.add(closed_line(seen))


def _open(on: Served, seconds: float) -> tuple[Rows, str]:
    """Brim as users run it, and the page that it writes."""
    asked = ("--rate", f"{RATE:g}", "--arrivals", "constant", "--seconds", f"{seconds:g}")
    run_folder = brim_loadtest(on, *asked)
    page = (layout.latest_report(on.folder) / "report.html").read_text(encoding="utf-8")
    return read_rows(run_folder), page


def from_intended(rows: Rows) -> Floats:
    """Milliseconds of what was answered well."""
    found: Floats = (rows["done_ns"] - rows["intended_ns"])[rows["status"] == Status.OK] / 1e6
    return found


def open_line(ms: Floats) -> Line:
    """It shows the stall."""
    seen, least = _percentile(ms), SHOWS * STALL_S * 1e3
    return Line(
        what=f"stall of {STALL_S:g} s, open loop: p{PERCENTILE}", bound=f"at least {least:g} ms",
        measured=f"{seen:.0f} ms", held=seen >= least,
    )  # fmt: skip


def closed_line(ms: Floats) -> Line:
    """It does not, though the worst request met it."""
    seen, most = _percentile(ms), HIDES * STALL_S * 1e3
    worst = float(ms.max(initial=0.0))
    return Line(
        what=f"stall of {STALL_S:g} s, closed loop: p{PERCENTILE}", bound=f"at most {most:g} ms",
        measured=f"{seen:.0f} ms (the worst {worst:.0f})", held=seen <= most and worst >= SHOWS * STALL_S * 1e3,
    )  # fmt: skip


def page_line(page: str) -> Line:
    """The page says why."""
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
    missing = [words for words in SAID if words not in text]
    measured = f"without {missing}" if missing else "said"
    return Line(
        what="stall: the report says why they differ", bound=f"says {', '.join(SAID)}", measured=measured,
        held=not missing,
    )  # fmt: skip


def _percentile(ms: Floats) -> float:
    return float(np.percentile(ms, PERCENTILE, method="inverted_cdf")) if ms.size else 0.0
