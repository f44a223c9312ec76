"""From what the user asked for and what the target is to the plan that the steps are decided by. Pure."""

from __future__ import annotations

from brim.errors import UsageError
from brim.records import Target
from experiments.measure.experiment import Plan
from experiments.measure.request import Request
from experiments.measure.slo import TRIALS_MOST
from experiments.measure.targets import engine_file
from judging.tolerances import AGREE_SHARED

#: Of a search for the rate at an SLO, before its trials.
PROFILE_LOADS = 4
#: Six rates and a burst, each sent once more where the client was late (experiments.overload.plan).
OVERLOAD_LOADS = 14


def full(target: Target, request: Request) -> int:
    """Requests that hold 2 x max_batch x instances items."""
    return max(1, -(-target.full // request.items_per_request))


def plan_of(target: Target, request: Request, *, cross_check: bool, transfer: bool, agree: float) -> Plan:
    """The plan for one target; UsageError if it has fewer requests than senders."""
    filled = full(target, request)
    least, most = request.ladder or (1, max(request.plan.max_concurrency, 2 * filled))
    one_point = request.open_loop.outstanding if request.open_loop else request.concurrency
    requests = one_point or most
    if request.first_senders > requests:
        what = f"--expect-workers {request.workers}" if request.cluster else f"--senders {request.senders}"
        raise UsageError(f"{what}: only {requests} requests are in flight; ask for fewer")
    if request.open_loop is not None:  # one load at that rate: neither a closed loop nor the engine alone compares
        cross_check, transfer = False, False
    return Plan(
        full=filled,
        least=least,
        most=most,
        concurrency=one_point,
        senders=request.first_senders,
        max_senders=request.max_senders,
        rounds=request.plan.rounds,
        cross_check=cross_check,
        engine=engine_file(target) is not None and request.open_loop is None,
        transfer=transfer,
        agree=agree,
        figure_rounds=1 if request.open_loop else request.figure_rounds,
        starts=request.starts,
    )


def further_loads(request: Request) -> int:
    """Loads of the rate at the SLO and of what comes beyond it, at the very most."""
    if request.slo is None or request.open_loop is not None:
        return 0
    return PROFILE_LOADS + TRIALS_MOST + (OVERLOAD_LOADS if request.overload else 0)


def bound_of(request: Request) -> Plan:
    """The longest plan that any target could ask for: what is told before a host that is not ours is asked anything."""
    least, most = request.ladder or (1, request.plan.max_concurrency)
    return Plan(
        full=1, least=least, most=most, concurrency=request.concurrency, senders=request.first_senders,
        max_senders=request.max_senders, rounds=request.plan.rounds, cross_check=request.cross_check, engine=True,
        transfer=True, agree=AGREE_SHARED, figure_rounds=request.figure_rounds, starts=request.starts,
    )  # fmt: skip
