"""From what was gathered to the answer: figure, interval, checks, limit and verdict. Pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brim.records import Check, Latency, Limit, Load, LoadPoint, Run, Saturation, StatsRead, Target, Verdict, Window
from experiments.measure.alone import Kept, Values
from experiments.measure.steps import Done, Found, Plan, findings, serving_efficiency
from judging import accounting, checks, interval, limits, verdict
from judging.tolerances import AGREE_APART, AGREE_SHARED, AGREE_WINDOWS, PARITY
from judging.windows import Rows, latency

#: Sending this close to the rate that the user allows, the user is the limit.
THROTTLED = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLoad:
    """One load with its windows, and the rows and reads that they were cut from."""

    load: Load
    windows: tuple[Window, ...]
    rows: Rows
    period_ns: int
    kept: Kept
    reads: tuple[StatsRead, ...] = ()
    restarted: str = ""  # the server's counters went back while it ran

    @property
    def measured(self) -> tuple[Window, ...]:
        return tuple(w for w in self.windows if w.kind == "measured")

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(w.items_per_s for w in self.measured)

    @property
    def busy_s_per_item(self) -> float | None:
        """The engine's own time, once per execution, over the items of the measured windows."""
        servers = [w.server for w in self.measured if w.server]
        items = sum(int(size) * n for s in servers for size, n in s.batch_counts.items())
        return sum(s.busy_ns for s in servers) / items / 1e9 if items else None

    @property
    def effective_batch(self) -> float | None:
        return _mean([w.server.effective_batch for w in self.measured if w.server])

    @property
    def reasons(self) -> tuple[str, ...]:
        said = [*(r for w in self.measured for r in w.reasons), *self.load.reasons, *self.load.errors]
        return tuple(dict.fromkeys(said))[:3]

    @property
    def lost(self) -> bool:
        return self.load.ended == "server_lost" or bool(self.restarted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The engine alone: its rates, one a round, and its answers; or why there are none."""

    rates: tuple[float, ...] = ()
    values: Values | None = None
    reason: str = "not reached"
    failed: bool = False  # it should have run

    @property
    def items_per_s(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that one measurement gathered."""

    run: Run
    target: Target
    plan: Plan
    done: tuple[Done, ...]
    loads: tuple[MeasuredLoad, ...]
    alone: Alone
    items_per_request: int
    payload: str
    no_cross_check: str | None
    interrupted: bool = False
    lost: str | None = None  # why the server no longer answers as the one that was described
    max_rate_per_s: float | None = None  # requests, that the user allows to be sent to this host
    sender_cpus: tuple[int, ...] = ()

    def of(self, *purposes: str) -> list[MeasuredLoad]:
        return [load for load in self.loads if load.load.purpose in purposes]

    def windows(self, purpose: str) -> list[Window]:
        return [w for load in self.of(purpose) for w in load.measured]


def answer(evidence: Evidence, *, seconds_spent: float) -> Saturation:
    """The Saturation of a run. Its figure is given whatever the verdict, which says what it is worth."""
    found = findings(evidence.plan, evidence.done)
    figures = evidence.windows("figure")
    facts = _facts(evidence, found, figures)
    decided = verdict.verdict(facts)
    shown_limit, shown = _limit(evidence, found, figures)
    reasons = shown if decided == "saturated" else (verdict.because(facts), *shown)
    if decided == "server_lost" and evidence.lost:
        reasons = (evidence.lost, *shown)
    rate, bounds = _figure(evidence, figures)
    efficiency = serving_efficiency(evidence.done)
    return Saturation(
        run=evidence.run.id,
        batch_id=evidence.run.batch_id,
        variant=evidence.target.model,
        target=evidence.target.url,
        backend=evidence.target.variant.config.backend if evidence.target.variant else "unknown",
        server_version=evidence.target.server_version,
        verdict=decided,
        limited_by=_claimed(decided, shown_limit),
        reasons=reasons,
        items_per_s=rate,
        ci95=bounds,
        ci_kind="within_run" if bounds else None,
        at=_point(evidence, found),
        latency_ms=_latency(evidence),
        effective_batch=_mean([w.server.effective_batch for w in figures if w.server]),
        queue_ms=_mean([limits.queue_ms(w) for w in figures]),
        server_busy=_mean([w.server.busy_share(evidence.target.instances) for w in figures if w.server]),
        client_cpu_cores=_mean([limits.client_cpu_cores(w) for w in figures]),
        serving_efficiency=efficiency,
        cross_check=checks.cross_check(figures, evidence.windows("cross_check"), evidence.plan.agree),
        checks=_checks(evidence, found, figures, efficiency),
        seconds_spent=seconds_spent,
        item=evidence.target.item,
        in_process_items_per_s=evidence.alone.items_per_s,
    )


def _claimed(decided: Verdict, shown: Limit) -> Limit:
    """Only a plateau has a limit; elsewhere what was seen stands among the reasons."""
    if decided is Verdict.CLIENT_LIMITED:
        return "client"
    return shown if decided is Verdict.SATURATED else "unknown"


def _facts(evidence: Evidence, found: Found, figures: Sequence[Window]) -> verdict.Facts:
    own = evidence.of("figure") or evidence.of("search", "one_more_sender")
    requests_per_s = max((w.ok / w.seconds for w in figures), default=0.0)
    cap = evidence.max_rate_per_s
    return verdict.Facts(
        aborted=evidence.interrupted,
        server_lost=evidence.lost is not None or any(load.lost for load in evidence.loads),
        not_ok_share=max((_not_ok_share(load.load) for load in own), default=1.0),
        further_sender_gain=found.sender_gain,
        throttled=cap is not None and requests_per_s >= THROTTLED * cap,
        unstable=not figures or any(w.unstable for w in figures),
        single_point=evidence.plan.concurrency is not None,
        doubling_gain=found.doubling_gain,
    )


def _not_ok_share(load: Load) -> float:
    not_ok = load.rejected + load.timed_out + load.failed
    return not_ok / (load.ok + not_ok) if load.ok + not_ok else 1.0


def _figure(evidence: Evidence, figures: Sequence[Window]) -> tuple[float | None, tuple[float, float] | None]:
    """Items/s and its 95% interval, both from the fresh windows at the load point."""
    if not figures:
        return None, None
    stretches = [
        interval.stretch(load.rows, load.measured, load.period_ns) for load in evidence.of("figure") if load.measured
    ]
    found = interval.within_run(stretches)
    if found is None:
        return statistics.mean(w.items_per_s for w in figures), None
    return found.mean, found.bounds


def _limit(evidence: Evidence, found: Found, figures: Sequence[Window]) -> tuple[Limit, tuple[str, ...]]:
    windows = list(figures) or evidence.windows("search")
    if not windows:
        return "unknown", ()
    target = evidence.target
    base = limits.evidence(
        windows, max_batch=target.max_batch, instances=target.instances, experiment=_experiment(evidence, found),
        server_cores=_cores(evidence),
    )  # fmt: skip
    at_full = _search(evidence, concurrency=evidence.plan.full, senders=found.senders)
    doubled = _search(evidence, concurrency=2 * evidence.plan.full, senders=found.senders)
    if at_full and doubled:  # how the time outside the server grows with the load
        base = dataclasses.replace(
            base,
            outside_ms=_mean([limits.outside_ms(w) for w in doubled]),
            outside_ms_lower=_mean([limits.outside_ms(w) for w in at_full]),
        )
    if _cores(evidence) is None:  # the cores that were watched are the sender's, not the server's
        base = dataclasses.replace(base, machine_cpu_share=None)
    return limits.what_limits(base)


def _experiment(evidence: Evidence, found: Found) -> limits.SenderExperiment | None:
    """The last one-more-sender experiment; its gain is the medians' that the search decided by."""
    if found.sender_gain is None:
        return None
    high = 2 * evidence.plan.full
    one = _search(evidence, concurrency=high, senders=found.senders)
    more = _search(evidence, concurrency=high, senders=found.senders + 1)
    made = limits.sender_experiment(one, more, pinned_apart=pinned_apart(evidence.target, evidence.sender_cpus))
    return dataclasses.replace(made, gain=found.sender_gain)


def _search(evidence: Evidence, *, concurrency: int, senders: int) -> list[Window]:
    at = (concurrency, senders)
    loads = evidence.of("search", "one_more_sender")
    return [w for load in loads if (load.load.point.concurrency, load.load.point.senders) == at for w in load.measured]


def _cores(evidence: Evidence) -> float | None:
    server = evidence.target.server
    if server is None or server.pid is None:
        return None
    return float(len(server.cpus) or int(evidence.run.environment.machine["cores"]))


def _point(evidence: Evidence, found: Found) -> LoadPoint:
    figures = evidence.of("figure")
    if figures:
        return figures[-1].load.point
    return LoadPoint(
        concurrency=found.concurrency,
        items_per_request=evidence.items_per_request,
        payload=evidence.payload,
        senders=found.senders,
    )


def agree_within(target: Target, machine: Mapping[str, str], sender_cpus: Sequence[int]) -> float:
    """How far two generators may be apart: less where they do not take the server's time."""
    return AGREE_APART if machine["gpu"] != "none" or pinned_apart(target, sender_cpus) else AGREE_SHARED


def pinned_apart(target: Target, sender_cpus: Sequence[int]) -> bool:
    """Senders and server on cores of their own."""
    return bool(target.server and target.server.cpus and sender_cpus and not set(sender_cpus) & set(target.server.cpus))


def _checks(evidence: Evidence, found: Found, figures: Sequence[Window], efficiency: float | None) -> tuple[Check, ...]:
    own = evidence.of("search", "one_more_sender", "figure")
    rows = own[-1].rows if own else None
    point = _point(evidence, found)
    precision = evidence.target.variant.config.precision if evidence.target.variant else "fp32"
    responses = sum(load.load.ok + load.load.failed for load in own)
    malformed = sum(n for load in own for text, n in load.load.errors.items() if text.startswith("protocol"))
    alone = evidence.alone
    without = "" if alone.failed or alone.items_per_s is not None else alone.reason
    return (
        checks.accounting([f for load in own for f in _accounts(load)]),
        checks.intended_time(point, rows) if rows is not None else checks.not_applicable(2, "nothing was sent"),
        checks.limit_by_experiment(_experiment(evidence, found), single_point=evidence.plan.concurrency is not None),
        checks.batch_statistics([w.server for w in figures], instances=evidence.target.instances),
        _agreement(evidence, figures),
        _told(checks.in_process_ceiling(efficiency, alone.items_per_s, not_run=without), alone),
        _told(
            checks.outputs(
                responses=responses,
                malformed=malformed,
                samples=alone.values.compared if alone.values else 0,
                max_relative_error=alone.values.max_relative_error if alone.values else None,
                bound=PARITY[precision],
                no_values=without,
            ),
            alone,
        ),
        checks.calibrated(),
    )


def _told(check: Check, alone: Alone) -> Check:
    """A check that broke because the engine alone did not run says why."""
    if check.state == "broken" and alone.failed:
        return dataclasses.replace(check, reason=alone.reason)
    return check


def _agreement(evidence: Evidence, figures: Sequence[Window]) -> Check:
    check = checks.generators_agree(
        figures, evidence.windows("cross_check"), tolerance=evidence.plan.agree, not_run=_no_agreement(evidence)
    )
    doubts = [r for load in evidence.of("cross_check") if load.measured for r in load.load.reasons]
    if doubts and check.state == "held":  # perf_analyzer's own summary does not fit what it was seen to send
        return dataclasses.replace(check, state="broken", reason=doubts[0])
    return check


def _no_agreement(evidence: Evidence) -> str:
    if evidence.no_cross_check:
        return evidence.no_cross_check
    if evidence.plan.figure_rounds < AGREE_WINDOWS:
        return "one load by each generator: compared, not judged"
    return ""


def _accounts(load: MeasuredLoad) -> list[accounting.Finding | None]:
    """Rule 1's comparisons of one load: as a whole after its drain, and window by window."""
    whole: list[accounting.Finding | None] = []
    if len(load.reads) >= 2 and load.reads[-1].before_ns >= load.load.end_ns:
        inferred = load.reads[-1].inference_count - load.reads[0].inference_count
        whole.append(accounting.load_adds_up(accounting.items_by_status(load.rows), inferred))
    for window in load.measured:
        whole += [accounting.window_adds_up(window), accounting.littles_law(window)]
    return whole


def _latency(evidence: Evidence) -> Latency | None:
    """Percentiles of all requests that ended in the figure's windows; percentiles of windows are never averaged."""
    inside = [
        load.rows[(load.rows["done_ns"] > w.start_ns) & (load.rows["done_ns"] <= w.end_ns)]
        for load in evidence.of("figure")
        for w in load.measured
    ]
    return latency(np.concatenate(inside)) if inside else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
