"""Overload of one measured target, once the rate at its SLO is known: what `brim loadtest --overload` adds."""

from __future__ import annotations

from brim import guard
from brim.records import Overload, SloRate
from experiments.measure.bench import Bench
from experiments.measure.rate_at_slo import batcher_of
from experiments.overload.plan import plan_of
from experiments.overload.policies import policies
from experiments.overload.run import Gathered, answer, gather
from judging.queue_choice import choose
from judging.queue_limits import profile_of, propose


def overload(bench: Bench, found: SloRate) -> tuple[Overload, Gathered]:
    """overload.json, and what it was made of: `ended_by` says what ended it early. The rate must have been found."""
    assert found.items_per_s is not None  # its caller looked
    request = bench.request
    limit = request.allowed.get(guard.parse_url(bench.target.url).host)
    profile = profile_of(found, batcher_of(bench.target), request.items_per_request)
    plan = plan_of(found, profile, seed=request.plan.seed, most_per_s=limit.max_rate_per_s if limit else None)
    proposal = propose(profile, found.slo, plan.rate_per_s, seed=plan.seed)
    with policies(bench, proposal, plan.outstanding) as (ways, missing):
        gathered = gather(plan, ways, lambda words: bench.say.progress(f"    {words}"))
    recommended = choose(proposal, {way.name: way.limits for way in ways}, gathered.comparable, found.items_per_s)
    return answer(plan, gathered, recommended, [missing]), gathered
