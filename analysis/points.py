"""points.csv: every load of every run, one row each, in perf_analyzer's columns and units where they mean the same.

perf_analyzer's own columns come first, in its order and in microseconds. Those that a client which is not perf_analyzer
cannot tell apart (its time to send and to receive, the server's input, infer and output) stay empty: they are never 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from analysis.finished import Finished
from analysis.probes import engine_ms, outside_ms
from analysis.words import clean
from brim.records import Latency, Probe

#: What begins so is a formula to a spreadsheet.
_FORMULA = ("=", "+", "-", "@")

#: Column -> its text, from a probe and the run that it belongs to.
COLUMNS: dict[str, Callable[[Probe, Finished], str]] = {
    "Concurrency": lambda p, f: "" if p.at.concurrency is None else str(p.at.concurrency),
    "Inferences/Second": lambda p, f: _figure(p.items_per_s),  # it counts items there, too: requests x batch
    "Client Send": lambda p, f: "",
    "Network+Server Send/Recv": lambda p, f: "",
    "Server Queue": lambda p, f: _us(p.queue_ms),
    "Server Compute Input": lambda p, f: "",
    "Server Compute Infer": lambda p, f: "",
    "Server Compute Output": lambda p, f: "",
    "Client Recv": lambda p, f: "",
    "p50 latency": lambda p, f: _latency(p, lambda ms: ms.p50),
    "p90 latency": lambda p, f: _latency(p, lambda ms: ms.p90),
    "p95 latency": lambda p, f: _latency(p, lambda ms: ms.p95),
    "p99 latency": lambda p, f: _latency(p, lambda ms: ms.p99),
    "Avg latency": lambda p, f: _latency(p, lambda ms: ms.mean),
    "Server Compute": lambda p, f: _us(engine_ms(p)),  # input, infer and output together
    "Outside Server": lambda p, f: _us(outside_ms(p)),  # Avg latency = Server Queue + Server Compute + Outside Server
    "Items/Second": lambda p, f: _figure(p.items_per_s),
    "Effective Batch": lambda p, f: _figure(p.effective_batch),
    "CI Low": lambda p, f: _figure(p.ci95[0] if p.ci95 else None),
    "CI High": lambda p, f: _figure(p.ci95[1] if p.ci95 else None),
    "Verdict": lambda p, f: p.verdict,
    "Limited By": lambda p, f: f.answer.limited_by if f.answer and p.purpose == "figure" else "",
    "Reason": lambda p, f: _text(p.reason),
    "Variant": lambda p, f: _text(f.variant),
    "Purpose": lambda p, f: p.purpose,
    "Generator": lambda p, f: p.generator,
    "Senders": lambda p, f: str(p.at.senders),
    "Items/Request": lambda p, f: str(p.at.items_per_request),
    "Protocol": lambda p, f: p.at.protocol,
    "Transport": lambda p, f: p.at.transport,
    "Server Start": lambda p, f: str(p.server_start),
    "Run": lambda p, f: _text(f.run.id),
}


def csv_text(runs: Sequence[Finished]) -> str:
    """The file, header first; runs and their loads in their own order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for finished in runs:
        writer.writerows([cell(probe, finished) for cell in COLUMNS.values()] for probe in finished.probes)
    return text.getvalue()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _us(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds * 1e3:.0f}"


def _latency(probe: Probe, of: Callable[[Latency], float]) -> str:
    return "" if probe.latency_ms is None else _us(of(probe.latency_ms))


def _text(foreign: str) -> str:
    """Foreign text that no spreadsheet takes for a formula."""
    text = clean(foreign)
    return f"'{text}" if text.startswith(_FORMULA) else text
