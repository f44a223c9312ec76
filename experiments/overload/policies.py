"""The queue policies of one measurement: as the model is served, and on a second server as it could be.

Loads go through the measurement's own bench, so that they are booked like all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from brim.errors import NoResource, NotReady, UsageError
from brim.records import Access, Arrivals, ServingConfig, Target
from experiments.measure import targets
from experiments.measure.bench import Bench
from experiments.measure.payloads import Payloads, prepare
from experiments.measure.request import OpenLoop
from experiments.measure.trial import open_trial
from experiments.overload.beside import configs_beside, limits_of, served_beside, why_not
from experiments.overload.plan import Planned
from experiments.overload.run import Policy, Send, Sent
from judging.queue_limits import Limits, Proposal
from loadtest.control import Control, control
from loadtest.statistics_reader import StatisticsReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a bench needs to load another target."""

    config: ServingConfig
    target: Target
    control: Control
    reader: StatisticsReader
    payloads: Payloads


@contextlib.contextmanager
def policies(bench: Bench, proposal: Proposal, outstanding: int) -> Iterator[tuple[list[Policy], str]]:
    """The policies that can be loaded for the length of the block, and why there are no more (else "")."""
    variant, missing = bench.target.variant, why_not(bench.target)
    name, limits = (variant.config.name, limits_of(variant.config)) if variant else ("as served", Limits())
    found = [Policy(name=name, limits=limits, send=_sender(bench, None, outstanding))]
    with ExitStack() as held:
        if variant is not None and missing is None:
            configs = configs_beside(variant.config, proposal)
            try:
                places = _places(bench, configs, held)
            except (NotReady, NoResource, UsageError) as error:
                missing, places = f"other queue limits were not measured: {error}", []
                bench.say.warn(missing)
            for place in places:
                send = _sender(bench, place, outstanding)
                found.append(Policy(name=place.config.name, limits=limits_of(place.config), send=send))
        yield found, missing or ""


def _places(bench: Bench, configs: Sequence[ServingConfig], held: ExitStack) -> list[Place]:
    """One place for each config, on one more server; it ends, and what was prepared goes, with `held`."""
    if not configs:
        return []
    folder = bench.folder / "raw" / "beside"
    beside = held.enter_context(
        served_beside(bench.target, configs, out=bench.out, folder=folder, protocol=bench.protocol, say=bench.say)
    )
    return [
        _place(bench, target, config, folder / config.name, held)
        for target, config in zip(beside, configs, strict=True)
    ]


def _place(bench: Bench, target: Target, config: ServingConfig, folder: Path, held: ExitStack) -> Place:
    ask = control(target.url, {}, Access())
    # One point is all that is sent: no other way to send the same items is prepared.
    request = replace(bench.request, concurrency=1)
    sent = prepare(bench.run, target, request, folder, protocol=bench.protocol, control=ask, held=held, say=bench.say)
    reader = StatisticsReader(ask, target, targets.server_pid(target))
    return Place(config=config, target=target, control=ask, reader=reader, payloads=sent)


def _sender(bench: Bench, place: Place | None, outstanding: int) -> Send:
    """Sends a planned load to that place, or with None to the bench's own target."""

    def send(planned: Planned) -> Sent:
        law: Arrivals = "trace" if planned.burst else "poisson"
        asked = OpenLoop(
            offsets_ns=planned.offsets_ns, rate_per_s=planned.rate_per_s, arrivals=law, seconds=planned.seconds,
            outstanding=outstanding,
        )  # fmt: skip
        with contextlib.nullcontext() if place is None else _at(bench, place):
            sent = open_trial(bench, asked, "overload")
        return Sent(seen=sent.observed, errors=sent.load.errors)

    return send


@contextlib.contextmanager
def _at(bench: Bench, place: Place) -> Iterator[None]:
    """The bench loads another target for the length of the block; a loss there is not the measured server's."""
    own = bench.target, bench.control, bench.reader, bench.payloads
    bench.target, bench.control = place.target, place.control
    bench.reader, bench.payloads = place.reader, place.payloads
    try:
        yield
    finally:
        bench.target, bench.control, bench.reader, bench.payloads = own
        bench.lost = None
