"""From what was gathered to the answer: figure, interval, checks, limit and verdict. Pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from brim.records import (
    Check,
    CrossCheck,
    Limit,
    LoadPoint,
    Probe,
    Saturation,
    Target,
    Verdict,
    Window,
)
from experiments.measure.gathered import Alone, Evidence, MeasuredLoad, latency_of, mean
from experiments.measure.ladder import EQUAL_BATCHES, Found, findings
from experiments.measure.steps import serving_efficiency
from judging import accounting, checks, interval, limits, verdict
from judging.evidence import (
    SenderExperiment,
    TransferExperiment,
    busy_share,
    client_cpu_cores,
    effective_batch,
    of_point,
    queue_ms,
    sender_experiment,
)
from judging.probes import not_ok_share, probe_of
from judging.tolerances import AGREE_APART, AGREE_SHARED, AGREE_WINDOWS, PARITY, PLATEAU

#: Sending this close to the rate that the user allows, the user is the limit.
THROTTLED = 0.95


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
    figure = _figure(evidence, figures)
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
        items_per_s=figure.items_per_s,
        ci95=figure.bounds,
        ci_kind=figure.kind,
        at=_point(evidence, found),
        latency_ms=latency_of(evidence.of("figure")),
        effective_batch=mean([effective_batch(w) for w in figures]),
        queue_ms=mean([queue_ms(w) for w in figures]),
        server_busy=mean([busy_share(w, evidence.target.instances) for w in figures]),
        client_cpu_cores=mean([client_cpu_cores(w) for w in figures]),
        serving_efficiency=efficiency,
        cross_check=_cross_check(evidence, figures),
        checks=_checks(evidence, found, figures, efficiency),
        seconds_spent=seconds_spent,
        item=evidence.target.item,
        in_process_items_per_s=evidence.alone.items_per_s,
        starts=len({load.load.server_start for load in evidence.of("figure") if load.measured}) or 1,
        start_means=tuple(_start_means(evidence)),
        max_batch=evidence.target.last_step.max_batch,
        instances=evidence.target.last_step.instances,
        probes=tuple(_probe(load, evidence.target) for load in evidence.loads),
        command=evidence.run.command,
    )


def _probe(load: MeasuredLoad, target: Target) -> Probe:
    stretches = [interval.stretch(load.rows, load.measured, load.period_ns)] if load.measured else []
    within = interval.within_run(stretches)
    return probe_of(
        load.load, load.measured, instances=target.instances, latency_ms=latency_of([load]),
        ci95=within.bounds if within else None, lost=load.lost,
    )  # fmt: skip


def _claimed(decided: Verdict, shown: Limit) -> Limit:
    """Only a plateau has a limit; elsewhere what was seen stands among the reasons."""
    if decided is Verdict.CLIENT_LIMITED:
        return "client"
    return shown if decided is Verdict.SATURATED else "unknown"


def _facts(evidence: Evidence, found: Found, figures: Sequence[Window]) -> verdict.Facts:
    own = evidence.of("figure") or evidence.of("search", "one_more_sender")
    requests_per_s = max((w.ok / w.seconds for w in figures), default=0.0)
    cap, closed = evidence.max_rate_per_s, all(w.point.mode == "closed" for w in figures)
    return verdict.Facts(
        aborted=evidence.interrupted,
        server_lost=evidence.lost is not None or any(load.lost for load in evidence.loads),
        not_ok_share=max((not_ok_share(load.load) for load in own), default=1.0),
        answered=any(load.load.ok + load.load.rejected + load.load.timed_out + load.load.failed for load in own),
        further_sender_gain=found.sender_gain,
        # A rate that was asked for is what was sent, however near to the cap; a closed loop would have sent more.
        throttled=cap is not None and closed and requests_per_s >= THROTTLED * cap,
        unstable=not _all_steady(evidence),
        unstable_because=_why_unsteady(evidence),
        single_point=evidence.plan.concurrency is not None,
        doubling_gain=found.doubling_gain,
        short_of=evidence.plan.full if evidence.plan.base is None else None,
    )


def _all_steady(evidence: Evidence) -> bool:
    """Every load of the figure, and so every start of the server, gave windows, and none of them drifts."""
    loads = evidence.of("figure")
    return bool(loads) and all(load.measured and not any(w.unstable for w in load.measured) for load in loads)


def _why_unsteady(evidence: Evidence) -> str:
    """What keeps an open loop from being steady: the server, or the client."""
    windows = [w for load in evidence.of("figure") for w in load.measured if w.unstable and w.point.mode == "open"]
    return windows[0].reasons[0] if windows and windows[0].reasons else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Items/s at the load point, and its 95% interval as far as there is one."""

    items_per_s: float | None = None
    bounds: tuple[float, float] | None = None
    kind: Literal["within_run", "between_starts"] | None = None


def _figure(evidence: Evidence, figures: Sequence[Window]) -> Figure:
    """From the fresh windows at the load point: over server starts where there are enough, else within the run."""
    if not figures:
        return Figure()
    stretches = [
        interval.stretch(load.rows, load.measured, load.period_ns) for load in evidence.of("figure") if load.measured
    ]
    found = interval.between_starts(_start_means(evidence)) or interval.within_run(stretches)
    if found is None:
        return Figure(items_per_s=statistics.mean(w.items_per_s for w in figures))
    return Figure(items_per_s=found.mean, bounds=found.bounds, kind=found.kind)


def _start_means(evidence: Evidence) -> list[float]:
    """Items/s of each start of the server, where there was more than one."""
    by_start: dict[int, list[float]] = {}
    for load in evidence.of("figure"):
        by_start.setdefault(load.load.server_start, []).extend(load.rates)
    return [statistics.mean(rates) for rates in by_start.values() if rates] if len(by_start) > 1 else []


def _limit(evidence: Evidence, found: Found, figures: Sequence[Window]) -> tuple[Limit, tuple[str, ...]]:
    windows = list(figures) or next((list(x.measured) for x in reversed(evidence.of("search")) if x.measured), [])
    if not windows:
        return "unknown", ()
    of = evidence.target.last_step
    cores = _cores(evidence)
    return limits.what_limits(
        of_point(
            windows, max_batch=of.max_batch, instances=of.instances,
            lower=_search(evidence, concurrency=found.lower, senders=found.senders),
            higher=_search(evidence, concurrency=found.top, senders=found.senders),
            experiment=_experiment(evidence, found), transfer=_transfer(evidence, found),
            server_cores=cores, local=evidence.local, request_bytes=_request_bytes(evidence),
            loopback_bytes_per_s=evidence.loopback_bytes_per_s, link_bytes_per_s=evidence.link_bytes_per_s,
            full_batch=_full_batch(evidence, found),
        )
    )  # fmt: skip


def _experiment(evidence: Evidence, found: Found) -> SenderExperiment | None:
    """The last one-more-sender experiment; its gain is the medians' that the search decided by."""
    if found.sender_gain is None:
        return None
    one = _search(evidence, concurrency=found.top, senders=found.senders)
    more = _search(evidence, concurrency=found.top, senders=found.senders + 1)
    apart = pinned_apart(evidence.target, evidence.sender_cpus)
    made = sender_experiment(one, more, own_cores=len(evidence.sender_cpus) if apart else 0)
    return dataclasses.replace(made, gain=found.sender_gain)


def _transfer(evidence: Evidence, found: Found) -> TransferExperiment | None:
    """What the same items with fewer bytes gained; its gain is the medians' that the steps decided by."""
    lighter = [w for load in evidence.of("transfer") for w in load.measured]
    if found.transfer_gain is None or not lighter:
        return None
    how = f"over {lighter[0].point.transport.replace('_', ' ')}"
    return TransferExperiment(gain=found.transfer_gain, how=how)


def _full_batch(evidence: Evidence, found: Found) -> float | None:
    """The batch beyond which the engine profits no more: the last doubling made larger ones, and gained nothing."""
    lower, top = (
        mean([effective_batch(w) for w in _search(evidence, concurrency=at, senders=found.senders)])
        for at in (found.lower, found.top)
    )
    if lower is None or top is None or found.doubling_gain is None or found.doubling_gain > PLATEAU:
        return None
    return lower if top > lower * (1 + EQUAL_BATCHES) else None


def _request_bytes(evidence: Evidence) -> int | None:
    figures = evidence.of("figure") or evidence.of("search")
    return figures[-1].load.request_bytes if figures else None


def _search(evidence: Evidence, *, concurrency: int | None, senders: int) -> list[Window]:
    at = (concurrency, senders)
    loads = evidence.of("search", "one_more_sender")
    return [w for load in loads if (load.load.point.concurrency, load.load.point.senders) == at for w in load.measured]


def _cores(evidence: Evidence) -> float | None:
    server = evidence.target.server
    if server is None or server.pid is None:
        return None
    return float(len(server.cpus) or int(evidence.run.environment.machine["cores"]))


def _point(evidence: Evidence, found: Found) -> LoadPoint:
    sent = evidence.of("figure") or evidence.of("search", "one_more_sender")[-1:]  # without a figure: where it ended
    if sent:
        return sent[-1].load.point
    return LoadPoint(
        concurrency=found.concurrency,
        items_per_request=evidence.items_per_request,
        payload=evidence.payload,
        senders=found.senders,
    )


def agree_within(
    target: Target, machine: Mapping[str, str], sender_cpus: Sequence[int], *, local: bool = True
) -> float:
    """How far two generators may be apart: less where they do not take the server's time."""
    apart = not local or machine["gpu"] != "none" or pinned_apart(target, sender_cpus)
    return AGREE_APART if apart else AGREE_SHARED


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
        checks.accounting([f for load in own for f in accounts(load)]),
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
        checks.calibrated(evidence.calibration, evidence.run.environment, point),
    )


def _told(check: Check, alone: Alone) -> Check:
    """A check that broke because the engine alone did not run says why."""
    if check.state == "broken" and alone.failed:
        return dataclasses.replace(check, reason=alone.reason)
    return check


def _cross_check(evidence: Evidence, figures: Sequence[Window]) -> CrossCheck | None:
    """The other generator's rate; whether it agrees is what rule 5 says, where that has a say."""
    compared = checks.cross_check(figures, evidence.windows("cross_check"), evidence.plan.agree)
    rule = _agreement(evidence, figures)
    if compared is None or rule.state == "not_applicable":
        return compared
    return dataclasses.replace(compared, agrees=rule.state == "held")


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
        return "one load by each generator is too few"
    return ""


def accounts(load: MeasuredLoad) -> list[accounting.Finding | None]:
    """Rule 1's comparisons of one load: as a whole after its drain, and window by window."""
    whole: list[accounting.Finding | None] = []
    if len(load.reads) >= 2 and load.reads[-1].before_ns >= load.load.end_ns:
        inferred = load.reads[-1].inference_count - load.reads[0].inference_count
        whole.append(accounting.load_adds_up(accounting.items_by_status(load.rows), inferred))
    for window in load.measured:
        whole += [accounting.window_adds_up(window), accounting.littles_law(window)]
    return whole
