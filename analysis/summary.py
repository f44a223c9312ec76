"""summary.json: the answer of each run of a report, for a program to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.finished import Finished
from brim.records import Environment, Overload, Saturation, SloRate


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run: its answers, or how it ended without one."""

    run: str
    variant: str
    target: str
    started_utc: str
    status: str  # of run.json: closed, crashed, running
    loads: int
    cut_off_lines: int
    answer: Saturation | None
    slo: SloRate | None
    overload: Overload | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All runs of one report, measured on one machine."""

    batch_ids: tuple[str, ...]
    environment: Environment  # of the first run; `software` may differ between runs
    runs: tuple[RunSummary, ...]


def summarize(runs: Sequence[Finished]) -> Summary:
    return Summary(
        batch_ids=tuple(dict.fromkeys(f.run.batch_id for f in runs)),
        environment=runs[0].run.environment,
        runs=tuple(_one(finished) for finished in runs),
    )


def _one(finished: Finished) -> RunSummary:
    return RunSummary(
        run=finished.run.id,
        variant=finished.variant,
        target=finished.run.target.url,
        started_utc=finished.run.started_utc,
        status=finished.run.status,
        loads=len(finished.loads),
        cut_off_lines=finished.cut_off,
        answer=finished.answer,
        slo=finished.slo,
        overload=finished.overload,
    )
