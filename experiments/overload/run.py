"""The shell of an overload: send each load to each queue policy in turn, and judge it as it comes.

Writes nothing itself: the loads book themselves, and the answer is the caller's to save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from brim.errors import Interrupted, Lost, WorkerLost
from brim.records import Overload, OverloadPoint, Recovery
from experiments.overload.plan import OverloadPlan, Planned, judged_from_s, loads
from judging.overload import goodput, recovery
from judging.queue_choice import Recommended
from judging.queue_limits import Limits
from judging.slo_observed import Observed, late_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One load that has drained, and what the server or the socket said of it -> how often."""

    seen: Observed
    errors: Mapping[str, int]


#: Sends one load to the server of one policy; Lost if that server went away.
Send = Callable[[Planned], Sent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One way to queue, and how to reach a server that does."""

    name: str
    limits: Limits
    send: Send


@dataclass(slots=True)
class Gathered:
    """What has been judged so far, and what ended it early."""

    points: list[OverloadPoint] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    late_loads: set[int] = field(default_factory=set)  # that the client did not send on time: they show the client
    ended_by: Interrupted | Lost | None = None

    @property
    def comparable(self) -> list[OverloadPoint]:
        """Those that show the server."""
        return [point for point in self.points if point.load not in self.late_loads]


def gather(plan: OverloadPlan, policies: Sequence[Policy], tell: Callable[[str], None]) -> Gathered:
    """Every load to every policy, the policies side by side, so that a machine that drifts drifts for all of them.

    The first policy is the server as it is: without it nothing is compared. Another whose server is lost is left out.
    """
    found, left = Gathered(), list(policies)
    for planned in loads(plan):
        for policy in tuple(left):
            try:
                sent = _sent_on_time(plan, policy, planned, found)
            except (Interrupted, Lost) as ended:
                if policy is not policies[0] and not isinstance(ended, (Interrupted, WorkerLost)):
                    found.notes.append(f"left out from {planned.name} on: {policy.name}: {ended}")
                    left.remove(policy)
                    continue
                found.notes.append(f"ended early at {planned.name} under {policy.name}: {ended}")
                found.ended_by = ended
                return found
            _judge(found, plan, policy, planned, sent, tell)
    return found


def _sent_on_time(plan: OverloadPlan, policy: Policy, planned: Planned, found: Gathered) -> Sent:
    """The load, sent once more if the client was late with it; if it is late again, its point is not to decide."""
    sent = policy.send(planned)
    if late_words(sent.seen, plan.slo):
        sent = policy.send(planned)
    late = late_words(sent.seen, plan.slo)
    if late:
        found.late_loads.add(sent.seen.load)
        found.notes.append(f"at {planned.name} under {policy.name} {late}")
    return sent


def _judge(
    found: Gathered, plan: OverloadPlan, policy: Policy, planned: Planned, sent: Sent, tell: Callable[[str], None]
) -> None:
    if planned.burst is not None:
        found.recoveries.append(
            recovery(sent.seen, plan.slo, planned.burst, policy=policy.name, offered=planned.offered_per_s)
        )
        tell(words_of_recovery(found.recoveries[-1]))
        return
    point = goodput(
        sent.seen, sent.errors, plan.slo, policy=policy.name, from_s=judged_from_s(planned), until_s=planned.seconds
    )
    found.points.append(point)
    tell(words_of_point(point))


def words_of_point(point: OverloadPoint) -> str:
    """`b8 at 812/s: 401/s in time, 12 late, 390 rejected, 9 expired`."""
    kinds = {"late": point.late, "rejected": point.rejected, "expired": point.expired, "failed": point.failed}
    rest = "".join(f", {rate:.4g} {kind}" for kind, rate in kinds.items() if rate)
    return f"{point.policy} at {point.offered:.4g}/s: {point.good:.4g}/s in time{rest}"


def words_of_recovery(found: Recovery) -> str:
    """`b8 after 2 s at 812/s: in time again after 5.1 s`."""
    again = (
        "not in time again within the load" if found.seconds is None else f"in time again after {found.seconds:.3g} s"
    )
    return f"{found.policy} after {found.burst_s:g} s at {found.offered:.4g}/s: {again}"


def answer(plan: OverloadPlan, found: Gathered, recommended: Recommended, notes: Sequence[str]) -> Overload:
    """overload.json; `notes` say what else must be known of it."""
    return Overload(
        slo=plan.slo,
        items_per_s=plan.rate_per_s,
        points=tuple(found.points),
        recoveries=tuple(found.recoveries),
        max_queue_size=recommended.limits.max_queue_size,
        queue_timeout_us=recommended.limits.queue_timeout_us,
        why="; ".join([recommended.why, *(note for note in notes if note), *found.notes]),
    )
