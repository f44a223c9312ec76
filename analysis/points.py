"""points.csv: every load of every run, one row each, in perf_analyzer's columns and units where they mean the same.

Trials of a rate at an SLO and points of an overload follow the loads that have windows, with columns of their own.

perf_analyzer's own columns come first, in its order and in microseconds. Those that a client which is not perf_analyzer
cannot tell apart (its time to send and to receive, the server's input, infer and output) stay empty: they are never 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

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
    "Request Rate": lambda p, f: _figure(p.at.rate_per_s),  # open loop, requests
    "Arrivals": lambda p, f: p.at.arrivals or "",
}
#: Of trials and points of overload only; rates in items a second.
FURTHER = ("Offered", "Over SLO", "Foreseen Over SLO", "Policy", "Goodput", "Late", "Rejected", "Expired", "Failed")


def csv_text(runs: Sequence[Finished]) -> str:
    """The file, header first; runs and their loads in their own order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *FURTHER), restval="", lineterminator="\n")
    writer.writeheader()
    for finished in runs:
        for probe in finished.probes:
            writer.writerow({name: cell(probe, finished) for name, cell in COLUMNS.items()})
        writer.writerows(_trials(finished))
        writer.writerows(_overload(finished))
    return text.getvalue()


def _trials(of: Finished) -> Iterator[dict[str, str]]:
    for trial in of.slo.trials if of.slo else ():
        yield {
            **_of_load(of, trial.load, "trial"),
            "Offered": _figure(trial.items_per_s),
            "Over SLO": _figure(trial.over_share),
            "Foreseen Over SLO": _figure(trial.foreseen_share),
        }


def _overload(of: Finished) -> Iterator[dict[str, str]]:
    for point in of.overload.points if of.overload else ():
        yield {
            **_of_load(of, point.load, "overload"),
            "Items/Second": _figure(point.good + point.late),
            "Policy": _text(point.policy),
            "Offered": _figure(point.offered),
            "Goodput": _figure(point.good),
            "Late": _figure(point.late),
            "Rejected": _figure(point.rejected),
            "Expired": _figure(point.expired),
            "Failed": _figure(point.failed),
        }


def _of_load(of: Finished, index: int, purpose: str) -> dict[str, str]:
    """What is known of a load by its number in loads.jsonl, which a damaged run may lack."""
    told = {"Variant": _text(of.variant), "Purpose": purpose, "Run": _text(of.run.id)}
    load = next((load for load in of.loads if load.index == index), None)
    if load is None:
        return told
    at = load.point
    return told | {
        "Generator": load.generator,
        "Senders": str(at.senders),
        "Items/Request": str(at.items_per_request),
        "Protocol": at.protocol,
        "Transport": at.transport,
        "Server Start": str(load.server_start),
        "Request Rate": _figure(at.rate_per_s),
        "Arrivals": at.arrivals or "",
    }


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
