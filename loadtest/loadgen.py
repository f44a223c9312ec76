"""What MLPerf LoadGen is told beside the load point, and what its summary says. Pure.

A closed load point becomes its Offline scenario: one query of as many samples as fill the time, which so many
connections work off. An open one becomes its Server scenario: single samples on LoadGen's own Poisson schedule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SUMMARY = "mlperf_log_summary.txt"

_VERDICT = re.compile(r"^Result is : (VALID|INVALID)\s*$", re.MULTILINE)
_RATE = re.compile(r"^(?:Samples per second|Completed samples per second)\s*: ([0-9.e+]+)\s*$", re.MULTILINE)
_SCENARIO = re.compile(r"^Scenario : (\w+)\s*$", re.MULTILINE)
_CONDITION = re.compile(r"^\s+([A-Z][A-Za-z ]+) ?satisfied ?: NO\s*$", re.MULTILINE)
_MEAN = re.compile(r"^Mean latency \(ns\)\s*: (\d+)\s*$", re.MULTILINE)
_P99 = re.compile(r"^99\.00 percentile latency \(ns\)\s*: (\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """loadgen.json in the load's folder: what a load point does not say. Far shorter runs than MLPerf asks for."""

    expected_per_s: float = 1.0  # Offline: it issues 1.1 times as many samples as this gives in the time
    latency_ms: float = 10_000.0  # Server: VALID only if the 99th percentile stays below
    min_queries: int = 100  # Server: and if there were as many queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """mlperf_log_summary.txt."""

    scenario: str
    valid: bool
    samples_per_s: float
    mean_ms: float  # Server: from the scheduled time; Offline: from the start of the whole query
    p99_ms: float
    unmet: tuple[str, ...]  # conditions, in LoadGen's words


def settings_file(folder: Path) -> Path:
    return folder / "loadgen.json"


def read_summary(text: str) -> Summary | None:
    """None where LoadGen did not get to the end."""
    found = [pattern.search(text) for pattern in (_SCENARIO, _VERDICT, _RATE, _MEAN, _P99)]
    scenario, verdict, rate, mean, p99 = [one[1] if one else "" for one in found]
    if not (scenario and verdict and rate and mean and p99):
        return None
    return Summary(
        scenario=scenario, valid=verdict == "VALID", samples_per_s=float(rate), mean_ms=int(mean) / 1e6,
        p99_ms=int(p99) / 1e6, unmet=tuple(condition.strip() for condition in _CONDITION.findall(text)),
    )  # fmt: skip


def words(summary: Summary) -> str:
    """`LoadGen Server: 93.0 samples/s, INVALID under our settings: Early Stopping`: never MLPerf's verdict."""
    why = f": {', '.join(summary.unmet)}" if summary.unmet else ""
    verdict = "VALID" if summary.valid else "INVALID"
    return f"LoadGen {summary.scenario}: {summary.samples_per_s:.1f} samples/s, {verdict} under our settings{why}"
