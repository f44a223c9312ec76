"""The largest rate at an SLO of one target, after its peak or alone; and what the server does beyond it.

Books its loads like any other; writes slo.json and overload.json into the run's folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from brim import disk
from brim.errors import Interrupted, Lost, NotReady, NoValidNumber, WorkerLost
from brim.offspring import undisturbed
from brim.records import Overload, Saturation, Slo, SloRate, Target
from experiments.measure.bench import Bench
from experiments.measure.gathered import MeasuredLoad
from experiments.measure.rates import OUTSTANDING
from experiments.measure.request import Offsets, OpenLoop, SloAsked
from experiments.measure.slo import PERCENTILE, SLOW_PER_S, SLOW_PERCENTILE, Wanted, search
from experiments.measure.trial import Trial, closed_trial, open_trial
from judging.slo_observed import Floats, Observed, latencies
from judging.tolerances import STEADY_SHORT_WARMUP_SHARE
from queueing.batcher import Batcher


def rate_at_slo(bench: Bench, peak: Saturation | None) -> SloRate | None:
    """slo.json, where it was asked for: of the rate that was asked for, or the largest; with `peak`, after it.

    None, too, where the measurement ended before: then the bench says how.
    """
    asked, open_loop = bench.request.slo, bench.request.open_loop
    if asked is None or bench.interrupted or bench.lost:
        return None
    if peak is not None and peak.verdict == "failing":
        bench.say.warn("no rate at the SLO: the peak's requests failed; --slo-only looks for it all the same")
        return None
    found = kept(bench, asked, open_loop) if open_loop is not None else _searched(bench, asked)
    if found is not None and peak is not None and peak.verdict not in ("saturated", "point"):
        found = replace(found, reason="; ".join(filter(None, (f"the peak before it is {peak.verdict}", found.reason))))
    if found is not None:
        with undisturbed():
            disk.save(bench.folder / "slo.json", found)
    return found


def _searched(bench: Bench, asked: SloAsked) -> SloRate | None:
    """A search that a signal or a lost server ends has no rate, and the bench says why."""
    wanted = Wanted(
        limit_ms=asked.limit_ms, percentile=asked.percentile, seconds=asked.seconds, model_free=asked.model_free,
        seed=bench.request.plan.seed,
    )  # fmt: skip
    probe = Probe(bench)
    try:
        found = search(
            probe, batcher_of(bench.target), wanted, ready=_ready(bench), stopped=probe.stopped,
            progress=lambda text: bench.say.progress(f"    {text}"),
        )  # fmt: skip
    except NoValidNumber as ended:
        if probe.interrupted is None and bench.lost is None:
            raise
        bench.say.warn(str(ended))
        return None
    finally:
        bench.interrupted = probe.interrupted
        if probe.worker_lost is not None:
            raise probe.worker_lost  # no fault of the server
    return found


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


class Probe:
    """What the search for the rate sends, through the bench of this measurement."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.interrupted: Interrupted | None = None  # what ended a load, for the caller to raise again
        self.worker_lost: WorkerLost | None = None

    def closed(self, concurrency: int, seconds: float) -> Observed:
        """So many requests in flight for so long."""
        with self._heeding():
            return _observed(closed_trial(self._bench, concurrency, seconds, "profile"))

    def open(self, offsets_ns: Offsets, rate_per_s: float, seconds: float) -> Observed:
        """Poisson arrivals at those instants."""
        asked = OpenLoop(
            offsets_ns=offsets_ns, rate_per_s=rate_per_s, arrivals="poisson", seconds=seconds,
            outstanding=max(OUTSTANDING, ROOM * self._bench.target.full),
        )  # fmt: skip
        with self._heeding():
            return _observed(open_trial(self._bench, asked, "trial"))

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


def _observed(trial: Trial) -> Observed:
    load = trial.load
    until_ns = int(trial.rows["sent_ns"].max(initial=load.start_ns))
    return Observed(
        load=load.index, start_ns=load.start_ns, end_ns=until_ns, rows=trial.rows, reads=trial.reads,
        offsets_ns=trial.offsets_ns,
    )  # fmt: skip


def kept(bench: Bench, asked: SloAsked, open_loop: OpenLoop) -> SloRate:
    """Whether the rate that was asked for meets the SLO: every request due after the warm-up counts, sent or not."""
    assert asked.limit_ms is not None  # refused beforehand
    rate = open_loop.rate_per_s * bench.request.items_per_request
    percentile = asked.percentile or (SLOW_PERCENTILE if rate < SLOW_PER_S else PERCENTILE)
    slo = Slo(limit_ms=asked.limit_ms, percentile=percentile)
    took_s = np.concatenate([_due(load, open_loop) for load in bench.loads if load.load.purpose == "figure"])
    if not took_s.size:
        raise NoValidNumber("no request was due after the warm-up: raise --rate or --seconds")
    in_time = float(np.mean(took_s <= slo.limit_ms / 1e3))
    return SloRate(
        slo=slo,
        items_per_s=rate,
        ci95=None,
        given="data",
        verdict="met" if in_time >= slo.percentile / 100 else "missed",
        reason=f"{in_time:.2%} of {took_s.size} requests were answered within {slo.limit_ms:g} ms of when due",
        seconds_spent=open_loop.seconds,
    )


def _due(measured: MeasuredLoad, open_loop: OpenLoop) -> Floats:
    """How long what was due between the warm-up and the end of sending took, in seconds; inf = never answered well."""
    load = measured.load
    until_ns = min(int(open_loop.seconds * 1e9), load.end_ns - load.start_ns)
    from_ns = round(STEADY_SHORT_WARMUP_SHARE * until_ns)
    observed = Observed(
        load=load.index, start_ns=load.start_ns, end_ns=load.start_ns + until_ns, rows=measured.rows,
        offsets_ns=open_loop.offsets_ns,
    )  # fmt: skip
    first, last = np.searchsorted(open_loop.offsets_ns, (from_ns, until_ns))
    return latencies(observed)[first:last]


def beyond(bench: Bench, found: SloRate | None) -> Overload | None:
    """What the server does beyond that rate, where it was asked for and there is such a rate."""
    if not bench.request.overload or found is None or bench.interrupted or bench.lost:
        return None
    if found.items_per_s is None:
        bench.say.warn("no overload: it begins at the rate that meets the SLO, and none was found")
        return None
    from experiments.overload.measure import overload  # it stands on this room

    answer, gathered = overload(bench, found)
    with undisturbed():
        disk.save(bench.folder / "overload.json", answer)
    if isinstance(gathered.ended_by, Interrupted):
        bench.interrupted = gathered.ended_by
    elif isinstance(gathered.ended_by, WorkerLost):
        raise gathered.ended_by  # what it gave until then is kept
    return answer
