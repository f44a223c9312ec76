"""The largest rate at an SLO of one target, after its peak or alone, or whether a rate that was asked for meets it.

Books its loads like any other; writes slo.json into the run's folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from brim import disk, guard
from brim.errors import Interrupted, Lost, NotReady, NoValidNumber, WorkerLost
from brim.offspring import undisturbed
from brim.records import Check, Saturation, Slo, SloRate, Target, TargetLimit
from experiments.measure import targets
from experiments.measure.alone import Kept
from experiments.measure.answer import accounts
from experiments.measure.bench import Bench
from experiments.measure.cut import windows_of
from experiments.measure.gathered import MeasuredLoad
from experiments.measure.rates import OUTSTANDING
from experiments.measure.request import Offsets, OpenLoop, SloAsked
from experiments.measure.slo import search
from experiments.measure.slo_profile import PERCENTILE, Sought
from experiments.measure.trial import SentLoad, closed_trial, open_trial
from judging import checks
from judging.backlog import CLIENT_LATE
from judging.rows import Rows
from judging.slo_observed import Floats, Observed, ended_otherwise, late_words, latencies
from judging.slo_trials import least_requests
from judging.tolerances import STEADY_SHORT_WARMUP_SHARE
from loadtest.plan import LoadPlan
from queueing.batcher import Batcher


def rate_at_slo(bench: Bench, peak: Saturation | None) -> SloRate | None:
    """slo.json, where it was asked for: of the rate that was asked for, or the largest; with `peak`, after it.

    None, too, where the measurement ended before: then the bench says how.
    """
    asked, open_loop = bench.request.slo, bench.request.open_loop
    if asked is None or bench.interrupted or bench.lost:
        return None
    if peak is not None and peak.verdict == "failing" and open_loop is None:
        bench.say.warn("no rate at the SLO: the peak's requests failed; --slo-only looks for it all the same")
        return None
    found = kept(bench, asked, open_loop) if open_loop is not None else _searched(bench, asked)
    if found is not None and peak is not None and peak.verdict not in ("saturated", "point"):
        before = "the peak before it" if open_loop is None else "the load"
        found = replace(found, reason="; ".join(filter(None, (f"{before} is {peak.verdict}", found.reason))))
    if found is not None:
        with undisturbed():
            disk.save(bench.folder / "slo.json", found)
    return found


def _searched(bench: Bench, asked: SloAsked) -> SloRate | None:
    """A search that a signal or a lost server ends has no rate, and the bench says why."""
    sought = Sought(
        limit_ms=asked.limit_ms, percentile=asked.percentile, seconds=asked.seconds, model_free=asked.model_free,
        seed=bench.request.plan.seed, most_per_s=most_per_s(bench.target, bench.request.allowed),
        deadline_s=bench.request.plan.request_timeout_seconds,
    )  # fmt: skip
    loader = BenchLoader(bench)
    try:
        found = search(
            loader, batcher_of(bench.target), sought, ready=_ready(bench), stopped=loader.stopped,
            progress=lambda text: bench.say.progress(f"    {text}"),
        )  # fmt: skip
    except NoValidNumber as ended:
        if loader.interrupted is None and bench.lost is None:
            raise
        bench.say.warn(str(ended))
        return None
    finally:
        bench.interrupted = loader.interrupted
        if loader.worker_lost is not None:
            raise loader.worker_lost  # no fault of the server
    return replace(found, checks=tuple(loader.checks()))


def most_per_s(target: Target, allowed: Mapping[str, TargetLimit]) -> float | None:
    """Requests a second that the user allows to be sent to its host; None = no limit, as to this machine."""
    limit = allowed.get(guard.parse_url(target.url).host)
    return limit.max_rate_per_s if limit and not targets.local(target) else None


def _ready(bench: Bench) -> list[tuple[int, Observed]]:
    """What the search for the peak sent: the newest load of each number in flight, from as many senders."""
    found = {}
    for one in bench.loads:
        load, point = one.load, one.load.point
        if (
            load.purpose in ("search", "figure")
            and load.ended != "crashed"
            and point.senders == min(bench.senders, point.slots)
        ):
            found[point.concurrency or 0] = Observed(
                load=load.index, start_ns=load.start_ns, end_ns=int(one.rows["sent_ns"].max(initial=load.start_ns)),
                rows=one.rows, reads=one.reads,
            )  # fmt: skip
    return list(found.items())


def batcher_of(target: Target) -> Batcher:
    """As the model is served; of a server elsewhere only what it tells."""
    if target.variant is not None:
        return Batcher.of(target.variant.config)
    step, told = target.last_step, target.batching
    if told is None:  # of an ensemble's last step nothing is told
        return Batcher(max_batch=max(1, step.max_batch) if target.steps else 1, instances=max(1, step.instances))
    return Batcher(
        max_batch=max(1, step.max_batch), instances=max(1, step.instances), delay_s=told.queue_delay_us / 1e6,
        preferred=told.preferred, max_queue=told.max_queue_size, timeout_s=told.queue_timeout_us / 1e6,
    )  # fmt: skip


#: In flight at most, over two full batches for each instance: whoever waits longer is late already.
ROOM = 4


class BenchLoader:
    """What the search for the rate sends, through the bench of this measurement."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._sent: list[SentLoad] = []
        self.interrupted: Interrupted | None = None  # what ended a load, for the caller to raise again
        self.worker_lost: WorkerLost | None = None

    def closed(self, concurrency: int, seconds: float) -> Observed:
        """So many requests in flight for so long."""
        with self._heeding():
            return self._kept(closed_trial(self._bench, concurrency, seconds, "profile"))

    def open(self, offsets_ns: Offsets, rate_per_s: float, seconds: float) -> Observed:
        """Poisson arrivals at those instants."""
        asked = OpenLoop(
            offsets_ns=offsets_ns, rate_per_s=rate_per_s, arrivals="poisson", seconds=seconds,
            outstanding=max(OUTSTANDING, ROOM * self._bench.target.full),
        )  # fmt: skip
        with self._heeding():
            return self._kept(open_trial(self._bench, asked, "trial"))

    def checks(self) -> list[Check]:
        """Rules 1 and 2 held against what was sent, as against any other load."""
        return checks_of(self._sent, self._bench.request.plan)

    def stopped(self, signal: Interrupted) -> None:
        """Keep the signal that ended the search, wherever it came."""
        self.interrupted = signal

    @contextlib.contextmanager
    def _heeding(self) -> Iterator[None]:
        """A server that does not answer any more is lost; a sender that died is no fault of the server."""
        try:
            yield
        except WorkerLost as lost:
            self.worker_lost = lost
            raise
        except NotReady as gone:
            self._bench.lost = str(gone)
            raise Lost(str(gone)) from None

    def _kept(self, sent: SentLoad) -> Observed:
        self._sent.append(sent)
        return sent.observed


def checks_of(sent: Sequence[SentLoad], plan: LoadPlan) -> list[Check]:
    """Rules 1 and 2 of these loads: counts of client and server, and no request sent before it was meant."""
    timed = [one for one in sent if one.load.point.mode == "open"]
    made = [checks.accounting([found for one in sent for found in accounts(_windowed(one, plan))])]
    if timed:
        rows = np.concatenate([one.rows for one in timed]).view(Rows)
        made.append(checks.intended_time(timed[-1].load.point, rows))
    return made


def _windowed(sent: SentLoad, plan: LoadPlan) -> MeasuredLoad:
    """An open loop with the windows that it would have if it were the one that was asked for."""
    load = sent.load
    windows = windows_of(
        sent.rows, sent.reads, generator=load.generator, point=load.point, min_seconds=plan.window_seconds,
        min_batches=plan.window_batches, max_seconds=plan.window_limit_seconds, unsent=load.unsent,
    ) if load.point.mode == "open" else []  # fmt: skip
    return MeasuredLoad(
        load=load, windows=tuple(windows), rows=sent.rows, period_ns=1, kept=Kept(folder=Path(), samples=()),
        reads=sent.reads,
    )  # fmt: skip


def kept(bench: Bench, asked: SloAsked, open_loop: OpenLoop) -> SloRate:
    """Whether the rate that was asked for meets the SLO: every request that was due counts, sent or not.

    Behind the warm-up, but of a trace from its first request on. NoValidNumber where that cannot be told: too few were
    due, or it was the client that did not keep up.
    """
    assert asked.limit_ms is not None  # refused beforehand
    slo = Slo(limit_ms=asked.limit_ms, percentile=asked.percentile or PERCENTILE)
    figures = [load for load in bench.loads if load.load.purpose == "figure"]
    loads = [_asked(load, open_loop) for load in figures]
    took_s = np.concatenate([_due(load, open_loop) for load in loads])
    in_time = float(np.mean(took_s <= slo.limit_ms / 1e3)) if took_s.size else 1.0
    growing = [reason for load in figures for window in load.windows if window.unstable for reason in window.reasons]
    late = [*filter(None, (late_words(load, slo) for load in loads))]
    verdict: Literal["met", "missed"] = "met" if in_time >= slo.percentile / 100 else "missed"
    if verdict == "met":
        _require_told(took_s.size, slo, late or [reason for reason in growing if reason.startswith(CLIENT_LATE)])
    answered = f"{in_time:.2%} of {took_s.size} requests were answered within {slo.limit_ms:g} ms of when due"
    if verdict == "met" and growing:  # in time as yet
        verdict, answered = "missed", f"{growing[0]}: in a longer load they would be late; {answered}"
    refused = ended_otherwise(np.concatenate([load.rows["status"] for load in loads]))
    why = f"in the whole load {refused}" if verdict == "missed" and refused else ""
    return SloRate(
        slo=slo,
        items_per_s=open_loop.rate_per_s * bench.request.items_per_request,
        ci95=None,
        given="data",
        verdict=verdict,
        reason="; ".join(filter(None, (answered, why, *late))),
        seconds_spent=open_loop.seconds,
    )


def _require_told(requests: int, slo: Slo, late: Sequence[str]) -> None:
    """NoValidNumber where a rate that seems to be met rests on too few requests, or on a client that was late."""
    least = least_requests(slo)
    if requests < least:
        raise NoValidNumber(
            f"{requests} requests are too few to show p{slo.percentile:g}, {least} must be due; raise --seconds"
        )
    if late:
        raise NoValidNumber(f"whether the rate is served cannot be told: {late[0]}", word="unstable")


def _asked(measured: MeasuredLoad, open_loop: OpenLoop) -> Observed:
    """The load with what of its schedule was due until sending ended."""
    load, offsets_ns = measured.load, open_loop.offsets_ns
    until_ns = min(int(open_loop.seconds * 1e9), load.end_ns - load.start_ns)
    return Observed(
        load=load.index, start_ns=load.start_ns, end_ns=load.start_ns + until_ns, rows=measured.rows,
        offsets_ns=offsets_ns[: np.searchsorted(offsets_ns, until_ns)], outstanding=open_loop.outstanding,
    )  # fmt: skip


def _due(load: Observed, open_loop: OpenLoop) -> Floats:
    """How long what is judged took, in seconds; inf = never answered well."""
    assert load.offsets_ns is not None  # of an open loop
    if open_loop.arrivals == "trace":  # what it begins with is as much of it as the rest
        return latencies(load)
    from_ns = round(STEADY_SHORT_WARMUP_SHARE * (load.end_ns - load.start_ns))
    return latencies(load)[np.searchsorted(load.offsets_ns, from_ns) :]
