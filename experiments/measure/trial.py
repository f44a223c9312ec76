"""One load of a fixed length beside the ladder: what a rate that meets an SLO is predicted from, and verified by.

Books it as any load is booked: its line in loads.jsonl, its rows in requests/. Cuts no windows: a trial is judged by
when its requests were meant, not by when they ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from brim.errors import Lost, NoResource, NotReady, WorkerLost
from brim.offspring import undisturbed
from brim.records import Load, LoadPoint, Purpose, StatsRead
from experiments.measure import alone, targets
from experiments.measure.bench import Bench
from experiments.measure.gathered import MeasuredLoad
from experiments.measure.request import Offsets, OpenLoop
from experiments.measure.send import load_spec, opened, point_of, take_down
from judging.rows import Rows
from judging.slo_observed import Observed
from judging.windows import by_completion, server_delta
from loadtest.driver import LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.rows import read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SentLoad:
    """One load and what was seen of it; rows by completion."""

    load: Load
    rows: Rows
    reads: tuple[StatsRead, ...]
    offsets_ns: Offsets | None = None  # the whole schedule of an open loop, from load.start_ns

    @property
    def observed(self) -> Observed:
        """As it is judged: sending stopped with the last request."""
        return Observed(
            load=self.load.index, start_ns=self.load.start_ns,
            end_ns=int(self.rows["sent_ns"].max(initial=self.load.start_ns)), rows=self.rows, reads=self.reads,
            offsets_ns=self.offsets_ns, outstanding=self.load.point.outstanding,
        )  # fmt: skip


def closed_trial(bench: Bench, concurrency: int, seconds: float, purpose: Purpose) -> SentLoad:
    """So many requests in flight for so long."""
    point = point_of(bench, bench.sender, concurrency=concurrency, senders=min(bench.senders, concurrency))
    return _sent(bench, load_spec(bench, point, seconds=seconds), purpose)


def open_trial(bench: Bench, asked: OpenLoop, purpose: Purpose) -> SentLoad:
    """Requests by that schedule."""
    closed = point_of(bench, bench.sender, concurrency=asked.outstanding, senders=bench.senders)
    spec = load_spec(bench, opened(closed, asked), seconds=asked.seconds, offsets_ns=asked.offsets_ns)
    return replace(_sent(bench, spec, purpose), offsets_ns=asked.offsets_ns)


def _sent(bench: Bench, spec: LoadSpec, purpose: Purpose) -> SentLoad:
    """Send it and take it down; Lost (or what the signal was) once it is booked, if the server did not last."""
    what = f"{bench.target.model}: {purpose}, {_words(spec.point)}"
    bench.say.progress(f"[{len(bench.loads) + 1}] {what} for {spec.seconds:.0f} s")

    def progress(elapsed_s: float, wanted_s: float) -> None:
        bench.progress.stepping(what, wanted_s, 0)

    try:
        bench.payloads.ensure_registered()
        loaded = run_load(
            bench.own, spec, bench.request.plan, bench.reader, index=len(bench.loads), purpose=purpose, length=None,
            suffices=None, progress=progress,
        )  # fmt: skip
    except NotReady as gone:  # since the load before
        bench.lost = targets.lost_reason(bench.target, bench.control) or str(gone)
        raise Lost(bench.lost) from None
    with undisturbed():
        sent = _booked(bench, spec, loaded)
    _raise_what_ended(bench, loaded, sent)
    return sent


def _booked(bench: Bench, spec: LoadSpec, loaded: Loaded) -> SentLoad:
    load = take_down(bench, spec, loaded)
    rows = by_completion(read_rows(bench.folder, load.workers))
    kept = alone.Kept(folder=loaded.folder, samples=loaded.samples)
    bench.loads.append(
        MeasuredLoad(load=load, windows=(), rows=rows[:0], period_ns=1, kept=kept)  # the file keeps its rows
    )
    return SentLoad(load=load, rows=rows, reads=loaded.reads)


def _raise_what_ended(bench: Bench, loaded: Loaded, sent: SentLoad) -> None:
    if loaded.interrupted is not None:
        raise loaded.interrupted
    said = next(iter((*sent.load.reasons, *sent.load.errors)), "")
    if loaded.no_room:
        raise NoResource(said or f"{bench.folder}: no room left; free some, or point --out elsewhere")
    if sent.load.ended == "server_lost":
        bench.lost = targets.lost_reason(bench.target, bench.control) or said
        raise Lost(bench.lost)
    try:
        server_delta(sent.reads[0], sent.reads[-1])
    except Lost as restarted:  # its counters went back
        bench.lost = str(restarted)
        raise
    if sent.load.ended == "crashed":
        raise WorkerLost(f"{said or 'a sender process ended'}; what was measured is in {bench.folder}")


def _words(point: LoadPoint) -> str:
    if point.mode == "closed":
        return f"{point.concurrency} in flight"
    return f"{point.rate_per_s:.4g}/s {point.arrivals}"
