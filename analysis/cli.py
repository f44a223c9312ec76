"""`brim report`: make the report of finished runs again from their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brim import layout
from brim.cli import verb
from brim.say import Say

if TYPE_CHECKING:
    from analysis.finished import Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The one document of --json: what was made, and of which runs."""

    report: str
    points: str
    summary: str
    latest: str
    runs: tuple[str, ...]


@verb("Make the report of finished runs again from their files: RUN is an id, its beginning, or a folder.")
@click.argument("run", nargs=-1)
def report(say: Say, out: Path, run: tuple[str, ...]) -> None:
    # matplotlib takes a second to import; --help and a wrong option need none of it.
    from analysis import finished
    from analysis.report import keep

    read = [finished.read(folder) for folder in finished.choose(out, run)]
    page = keep(out, read)
    for one in read:
        _warn(say, one)
    say.answer(f"{len(read)} run{'s' if len(read) > 1 else ''}: {page}")
    say.document(
        Written(
            report=str(page),
            points=str(page.parent / "points.csv"),
            summary=str(page.parent / "summary.json"),
            latest=str(layout.latest_report(out)),
            runs=tuple(one.run.id for one in read),
        )
    )


def _warn(say: Say, one: Finished) -> None:
    if not one.answered:
        say.warn(f"{one.run.id}: {one.state}; the report shows what it had measured")
    if one.cut_off:
        say.warn(f"{one.run.id}: {one.cut_off} half-written line(s) left out")


command = report
