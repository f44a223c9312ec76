"""The eight rules of believability, each held against a measurement: held, broken, or not applicable and why.

Reads windows and findings, writes nothing. The numbers are those of docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from brim.records import Calibration, Check, CrossCheck, Environment, LoadPoint, ServerDelta, Window
from judging.accounting import Finding
from judging.evidence import SenderExperiment
from judging.rows import Rows
from judging.tolerances import AGREE_WINDOWS, CEILING, PLATEAU
from judging.verdict import gain

NAMES = {
    1: "accounting",
    2: "intended_time",
    3: "limit_by_experiment",
    4: "batch_statistics",
    5: "generators_agree",
    6: "in_process_ceiling",
    7: "outputs",
    8: "calibrated",
}
#: How `brim calibrate` sends: protocol, transport, sender.
CALIBRATED = ("http", "wire", "locust_http")


def accounting(findings: Iterable[Finding | None]) -> Check:
    """Rule 1: client's counts against the server's, and Little's law; None = not comparable."""
    made = [finding for finding in findings if finding is not None]
    if not made:
        return not_applicable(1, "nothing to compare: no server statistics, and not a closed loop")
    broken = [finding for finding in made if not finding.held]
    if broken:
        worst = broken[0]
        return _check(1, False, value=worst.value, bound=worst.bound, reason="; ".join(f.text for f in broken[:3]))
    nearest = max(made, key=lambda finding: finding.value / finding.bound if finding.bound else 0.0)
    return _check(1, True, value=nearest.value, bound=nearest.bound, reason=nearest.text)


def intended_time(point: LoadPoint, rows: Rows) -> Check:
    """Rule 2: in open loop no request is meant later than it was sent; the value is the largest lag, ms."""
    if point.mode == "closed":
        return not_applicable(2, "closed loop: a request is meant when it is sent")
    lag_ms = (rows["sent_ns"] - rows["intended_ns"]) / 1e6
    early = int((lag_ms < 0).sum())
    reason = f"{early} requests were sent before they were meant" if early else ""
    return _check(2, early == 0, value=float(lag_ms.max(initial=0.0)), reason=reason)


def limit_by_experiment(experiment: SenderExperiment | None, *, single_point: bool) -> Check:
    """Rule 3: one more sender was tried, and it either convicts the client or acquits it."""
    if experiment is not None:
        decides = experiment.convicts or experiment.acquits
        return _check(3, decides, value=experiment.gain, bound=PLATEAU, reason=experiment.words())
    if single_point:
        return not_applicable(3, "one load point was asked for: no limit is claimed")
    return _check(3, False, reason="no further sender was tried")


def batch_statistics(deltas: Sequence[ServerDelta | None], *, instances: int) -> Check:
    """Rule 4: `batch_stats` are there, and count the same executions and items as the server's own totals.

    A read may fall between the counters of one execution, so each instance may be off by one at either end.
    Busy above the whole is a per-request counter's; an execution counts when it ends, so one may jut out.
    """
    given = [delta for delta in deltas if delta is not None]
    if not given:
        return not_applicable(4, "the server gave no statistics")
    if any(delta.steps for delta in given):
        return not_applicable(4, "an ensemble executes nothing itself: its steps' batch_stats are read instead")
    for delta in given:
        executions = sum(delta.batch_counts.values())
        if not executions:
            return _check(4, False, reason="the server's statistics have no batch_stats")
        largest = max(int(size) for size in delta.batch_counts)
        items = sum(int(size) * n for size, n in delta.batch_counts.items())
        for what, found, total, most in (
            ("executions", executions, delta.execution_count, 2 * instances),
            ("items", items, delta.inference_count, 2 * instances * largest),
        ):
            if abs(found - total) > most:
                reason = f"batch_stats have {found} {what}, the server's total is {total}"
                return _check(4, False, value=abs(found - total), bound=most, reason=reason)
        busy, most_busy = delta.busy_share(instances), 1 + 2 * instances / executions
        if busy > most_busy:
            reason = f"{instances} instances were busy {busy:.0%} of the time"
            return _check(4, False, value=busy, bound=most_busy, reason=reason)
    return _check(4, True, value=max(delta.busy_share(instances) for delta in given))


def cross_check(windows: Sequence[Window], others: Sequence[Window], tolerance: float) -> CrossCheck | None:
    """What the other generator says of the same point; None if it has no window."""
    if not windows or not others:
        return None
    other = median(w.items_per_s for w in others)
    apart = abs(gain(median(w.items_per_s for w in windows), other))
    return CrossCheck(generator=others[0].generator, items_per_s=other, agrees=apart <= tolerance)


def generators_agree(
    windows: Sequence[Window], others: Sequence[Window], *, tolerance: float, not_run: str = ""
) -> Check:
    """Rule 5: medians of at least two windows by each generator; `not_run` says why there is no second."""
    if not_run:
        return not_applicable(5, not_run)
    if min(len(windows), len(others)) < AGREE_WINDOWS:
        reason = f"{len(windows)} and {len(others)} windows: each generator needs {AGREE_WINDOWS}"
        return _check(5, False, bound=tolerance, reason=reason)
    one, other = median(w.items_per_s for w in windows), median(w.items_per_s for w in others)
    apart = abs(gain(one, other))
    reason = f"{windows[0].generator} {one:.4g}/s, {others[0].generator} {other:.4g}/s"
    return _check(5, apart <= tolerance, value=apart, bound=tolerance, reason=reason)


def in_process_ceiling(efficiency: float | None, in_process: float | None, *, not_run: str = "") -> Check:
    """Rule 6: the value is serving efficiency: served over what the same engine does alone, at most a little over 1."""
    if not_run:
        return not_applicable(6, not_run)
    if not efficiency or not in_process:
        return _check(6, False, bound=CEILING, reason="served rate and engine alone were not both measured")
    reason = f"engine alone {in_process:.4g}/s, served {efficiency:.1%} of it"
    return _check(6, efficiency <= CEILING, value=efficiency, bound=CEILING, reason=reason)


def outputs(
    *,
    responses: int,
    malformed: int,
    samples: int,
    max_relative_error: float | None,
    bound: float,
    no_values: str = "",
) -> Check:
    """Rule 7: every response had the right status and length, and the sampled values are the engine's own.

    `no_values` says why there is no engine to compare values with; wrong shapes break the rule all the same.
    """
    if malformed:
        return _check(7, False, value=malformed, bound=0, reason=f"{malformed} of {responses} responses were malformed")
    if no_values:
        return not_applicable(7, f"{responses} responses were well-formed; values not compared: {no_values}")
    if max_relative_error is None or samples == 0:
        return _check(7, False, bound=bound, reason="no sampled response was compared with the engine")
    reason = f"{samples} sampled responses against the engine"
    return _check(7, max_relative_error <= bound, value=max_relative_error, bound=bound, reason=reason)


def calibrated(made: Calibration | None, here: Environment, point: LoadPoint) -> Check:
    """Rule 8: known servers were measured right here by what sent this load, too; the value is the largest error.

    Machine, Brim's commit, Python, kernel and packages must be the same, as far as both list them. The served Triton
    may be another: a run lists it under another name than a calibration, as it is the client that is calibrated.
    """
    if (point.protocol, point.transport, point.sender) != CALIBRATED:
        way = f"{point.protocol}, {point.transport.replace('_', ' ')}, {point.sender}"
        return not_applicable(8, f"`brim calibrate` sends over HTTP with Brim's own sender; this load went by {way}")
    if made is None:
        return not_applicable(8, "not calibrated yet: `brim calibrate` takes about two minutes")
    if made.environment.machine != here.machine:
        return not_applicable(8, "calibrated on another machine: run `brim calibrate` on this one")
    for name, then in made.environment.software.items():
        if (now := here.software.get(name, then)) != then:
            return not_applicable(8, f"calibrated with {name} {then}, and this is {now}: run `brim calibrate` again")
    wrong = [row for row in made.rows if not row.holds]
    worst = max((abs(row.error_fraction) for row in made.rows if row.error_fraction is not None), default=None)
    servers = len({row.server for row in made.rows})
    reason = f"{len(made.rows)} figures of {servers} known servers, {made.made_utc}"
    if wrong:
        reason = f"{wrong[0].generator} is wrong about {wrong[0].server}, {wrong[0].quantity} ({made.made_utc})"
    return _check(8, made.holds, value=worst, reason=reason)


def not_applicable(rule: int, reason: str) -> Check:
    return Check(rule=rule, name=NAMES[rule], state="not_applicable", reason=reason)


def _check(rule: int, held: bool, *, value: float | None = None, bound: float | None = None, reason: str = "") -> Check:
    state: Literal["held", "broken"] = "held" if held else "broken"
    return Check(rule=rule, name=NAMES[rule], state=state, value=value, bound=bound, reason=reason)
