"""Overload of one measured target, once the rate at its SLO is known: what `brim loadtest --overload` adds.

Books its loads like any other; writes overload.json into the run's folder.
"""

from __future__ import annotations

from brim import disk
from brim.errors import Interrupted, WorkerLost
from brim.offspring import undisturbed
from brim.records import Overload, SloRate
from experiments.measure.bench import Bench
from experiments.measure.rate_at_slo import batcher_of, most_per_s
from experiments.overload.plan import plan_of
from experiments.overload.policies import policies
from experiments.overload.run import Gathered, answer, gather
from judging.queue_choice import choose
from judging.queue_limits import model_of, propose
from queueing.arrivals import highest_random_rate


def beyond(bench: Bench, found: SloRate | None) -> Overload | None:
    """What the server does beyond that rate, where it was asked for and there is such a rate."""
    if not bench.request.overload or found is None or bench.interrupted or bench.lost:
        return None
    most = most_per_s(bench.target, bench.request.allowed)
    if found.items_per_s is None or found.ci95 is None:
        at_most = most is not None and found.items_per_s == highest_random_rate(most)
        why = (
            f"max_rate_per_s allows this host {most:g}/s, too little to go beyond the rate that meets the SLO"
            if at_most
            else "it begins at the rate that meets the SLO, which was not found"
        )
        bench.say.warn(f"no overload: {why}")
        return None
    overload, gathered = _overload(bench, found, found.items_per_s, most)
    with undisturbed():
        disk.save(bench.folder / "overload.json", overload)
    if isinstance(gathered.ended_by, Interrupted):
        bench.interrupted = gathered.ended_by
    elif isinstance(gathered.ended_by, WorkerLost):
        raise gathered.ended_by  # what it gave until then is kept
    return overload


def _overload(bench: Bench, found: SloRate, rate: float, most: float | None) -> tuple[Overload, Gathered]:
    """overload.json, and what it was made of: `ended_by` says what ended it early."""
    model = model_of(found, batcher_of(bench.target))
    plan = plan_of(found, model, seed=bench.request.plan.seed, most_per_s=most)
    proposal = propose(model, found.slo, rate, seed=plan.seed)
    with policies(bench, proposal, plan.outstanding) as (ways, missing):
        gathered = gather(plan, ways, lambda words: bench.say.progress(f"    {words}"))
    recommended = choose(proposal, {way.name: way.limits for way in ways}, gathered.comparable, rate)
    return answer(plan, gathered, recommended, [missing]), gathered
