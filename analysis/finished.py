"""Which finished runs are meant, and what their files say of each.

Reads out/runs/<run>/{run.json, loads.jsonl, windows.jsonl, saturation.json, slo.json, overload.json}, and the requests
of an open loop that was asked for; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from analysis import probes, requests
from analysis.open_loop import ObservedLoop, observe
from analysis.words import clean
from brim import disk, layout
from brim.errors import InvalidRecord, UsageError, did_you_mean
from brim.records import Load, Overload, Probe, Run, Saturation, SloRate, Window

T = TypeVar("T")

#: What every run's name begins with: the second in which its batch began.
_STAMP = re.compile(r"(\d{8}T\d{6}Z)-")
#: A batch gives a folder its name, so its id must not lead elsewhere.
_BATCH = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One run as its files tell it; `answer` is None where it ended before one was given, or none was asked for."""

    folder: Path
    run: Run
    answer: Saturation | None
    loads: tuple[Load, ...]
    probes: tuple[Probe, ...]
    cut_off: int = 0  # half-written last lines that were left out
    slo: SloRate | None = None
    overload: Overload | None = None
    open_loops: tuple[ObservedLoop, ...] = ()  # of the loads that were asked for as such, where their requests are kept

    @property
    def answered(self) -> bool:
        """Whether it gave any answer; a run that was only asked for the rate at an SLO has no other."""
        return any(answer is not None for answer in (self.answer, self.slo, self.overload))

    @property
    def variant(self) -> str:
        return self.answer.variant if self.answer else self.run.target.model

    @property
    def state(self) -> str:
        """How the run ended, where it gave no answer: `crashed`, `running`, or closed early."""
        return "stopped before it had an answer" if self.run.status == "closed" else self.run.status


def choose(out: Path, names: Sequence[str]) -> list[Path]:
    """The folders of the runs that are meant: ids, unique beginnings of ids, or folders; none = the newest batch."""
    found = [_named(out, name) for name in names] if names else newest(out)
    return list(dict.fromkeys(found))


def newest(out: Path) -> list[Path]:
    """Every run of the batch that began last; one of them that cannot be read is refused, not left out."""
    folders = [f for f in _folders(layout.runs(out)) if _STAMP.match(f.name)]
    if not folders:
        raise UsageError(f"there are no runs in {layout.runs(out)}; `brim loadtest` makes one")
    last = max(folders, key=lambda folder: folder.name)
    batch_id = _batch_of(last)
    return [folder for folder in _begun_with(last) if _batch_of(folder) == batch_id]


def whole(runs: Sequence[Finished]) -> bool:
    """Whether these are all runs of one batch, as far as can be read beside the first."""
    batches = {one.run.batch_id for one in runs}
    missing = {f.resolve() for f in _begun_with(runs[0].folder)} - {one.folder.resolve() for one in runs}
    return len(batches) == 1 and not any(_may_be_of(folder, *batches) for folder in missing)


def _begun_with(member: Path) -> list[Path]:
    """The runs beside `member`, itself among them, that began in the same second: as all of one batch do."""
    stamp = _STAMP.match(member.name)
    return [f for f in _folders(member.parent) if f.name.startswith(stamp[0])] if stamp else [member]


def _batch_of(folder: Path) -> str:
    return disk.load(Run, folder / "run.json").batch_id


def _may_be_of(folder: Path, batch_id: str) -> bool:
    try:
        return _batch_of(folder) == batch_id
    except InvalidRecord:
        return True


def read(folder: Path) -> Finished:
    """What a run's files say; UsageError and InvalidRecord name the file and what is wrong with it."""
    if not (folder / "run.json").is_file():
        raise UsageError(f"{folder} is not a run: there is no run.json in it; name a folder of out/runs/")
    run = disk.load(Run, folder / "run.json")
    if not _BATCH.fullmatch(run.batch_id):
        raise InvalidRecord(f"{folder / 'run.json'}: batch_id {clean(run.batch_id, 80)!r} is no name of a batch")
    loads, cut_loads = _lines(Load, folder / "loads.jsonl")
    windows, cut_windows = _lines(Window, folder / "windows.jsonl")
    answer = _if_there(Saturation, folder / "saturation.json")
    slo = _if_there(SloRate, folder / "slo.json")
    told = answer.probes if answer else ()
    return Finished(
        folder=folder,
        run=run,
        answer=answer,
        loads=tuple(loads),
        probes=probes.of_windows(told or probes.of_loads(loads, windows, run.target)),
        cut_off=cut_loads + cut_windows,
        slo=slo,
        overload=_if_there(Overload, folder / "overload.json"),
        open_loops=tuple(_open_loops(folder, loads, slo)),
    )


def _if_there(kind: type[T], path: Path) -> T | None:
    return disk.load(kind, path) if path.exists() else None


def asked_open(load: Load) -> bool:
    """An open loop for its own sake, not a part of a search."""
    return load.point.mode == "open" and load.purpose == "figure"


def _open_loops(folder: Path, loads: Sequence[Load], slo: SloRate | None) -> Iterator[ObservedLoop]:
    for load in filter(asked_open, loads):
        rows = requests.read(folder, load.workers)
        offsets_ns, reads = requests.schedule(folder, load.schedule), requests.reads(folder, load.schedule)
        seen = observe(load, rows, offsets_ns, slo.slo if slo else None, reads)
        if seen is not None:
            yield seen


def refuse_unlike(runs: Sequence[Finished]) -> None:
    """One report is about one machine: figures of two must not stand beside each other as if they could be compared."""
    first = runs[0]
    for other in runs[1:]:
        one, two = first.run.environment.machine, other.run.environment.machine
        apart = [key for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
        if apart:
            key = apart[0]
            told = f"{key} {clean(str(one.get(key)), 80)} and {clean(str(two.get(key)), 80)}"
            names = f"{first.run.id} and {other.run.id}"
            raise UsageError(f"{names} were measured on different machines ({told}); report them one by one")


def _named(out: Path, name: str) -> Path:
    as_folder = Path(name)
    if name and (as_folder / "run.json").is_file():
        return as_folder.resolve()
    known = {folder.name: folder for folder in _folders(layout.runs(out))}
    if name in known:
        return known[name]
    begin_so = [folder for run, folder in known.items() if name and run.startswith(name)]
    if len(begin_so) == 1:
        return begin_so[0]
    if begin_so:
        raise UsageError(f"{name!r} begins {len(begin_so)} runs ({begin_so[0].name}, {begin_so[1].name}, …): give more")
    if name and as_folder.is_dir():
        raise UsageError(f"{name} is not a run: there is no run.json in it")
    raise UsageError(f"there is no run {clean(name, 120)!r} in {layout.runs(out)}; {did_you_mean(name, known)}")


def _folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob("*/run.json"))


def _lines(kind: type[T], path: Path) -> tuple[list[T], int]:
    """Its records, and how many lines a kill cut off (one at most: any other broken line raises)."""
    records = disk.load_lines(kind, path)
    if not path.exists():
        return records, 0
    with path.open("rb") as stream:
        return records, sum(1 for _ in stream) - len(records)
