"""What the command line says of rates: an open loop's arrivals, an SLO, overload. Checked before anything is asked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from brim.errors import UsageError
from experiments.measure.request import OpenLoop, SloAsked
from queueing import arrivals

if TYPE_CHECKING:
    from experiments.measure.options import Options

#: Of an open loop.
SECONDS = 30.0
#: In flight at most: a server that keeps up with its SLO has fewer, and each may cost a connection.
OUTSTANDING = 512
#: What a search for the rate at the SLO may take.
SLO_SECONDS = 60.0
LONGEST_S = 3600.0


def open_loop(asked: Options) -> OpenLoop | None:
    """The schedule that --rate or --trace asks for; None without either, UsageError for what does not fit."""
    if asked.rate is None and asked.trace is None:
        _alone("--rate", arrivals=asked.arrivals, cv=asked.cv, seed=asked.seed, seconds=asked.seconds)
        _alone("--trace", speed_up=asked.speed_up)
        _alone("--rate", outstanding=asked.outstanding)
        return None
    if asked.rate is not None and asked.trace is not None:
        raise UsageError("--rate and --trace both say when to send: leave one out")
    return _of_trace(asked) if asked.trace is not None else _of_rate(asked)


def _of_rate(asked: Options) -> OpenLoop:
    assert asked.rate is not None  # its caller looked
    rate, seconds = _positive("--rate", asked.rate), _seconds(asked)
    law = asked.arrivals or ("gamma" if asked.cv is not None else "poisson")
    seed = asked.seed or 0
    _alone("--trace", speed_up=asked.speed_up)
    if law != "gamma" and asked.cv is not None:
        raise UsageError(f"--cv is of gamma arrivals: say --arrivals gamma, or leave it out with {law}")
    if law == "gamma" and asked.cv is None:
        raise UsageError("--arrivals gamma needs --cv: 1 is Poisson, above it requests come in bursts")
    offsets = arrivals.by_law(law, rate, seconds, cv=asked.cv, seed=seed)
    if not len(offsets):
        raise UsageError(f"--rate {rate:g} sends nothing within {seconds:g} s: raise --rate or --seconds")
    return OpenLoop(
        offsets_ns=offsets, rate_per_s=rate, arrivals=law, seconds=seconds, outstanding=_outstanding(asked),
        cv=asked.cv, seed=None if law == "constant" else seed,
    )  # fmt: skip


def _of_trace(asked: Options) -> OpenLoop:
    assert asked.trace is not None  # its caller looked
    _alone("--rate", arrivals=asked.arrivals, cv=asked.cv, seed=asked.seed)
    offsets = arrivals.read_trace(asked.trace)
    if asked.speed_up is not None:
        offsets = arrivals.speed_up(offsets, _positive("--speed-up", asked.speed_up))
    if asked.seconds is not None:
        offsets = offsets[offsets < _seconds(asked) * 1e9]
    length_s = float(offsets[-1]) / 1e9
    if length_s > LONGEST_S:
        raise UsageError(f"--trace lasts {length_s:.0f} s, at most {LONGEST_S:.0f} s are sent: cut it with --seconds")
    if length_s <= 0:
        raise UsageError(f"--trace {asked.trace}: all requests are due at once; it needs two instants at least")
    return OpenLoop(
        offsets_ns=offsets, rate_per_s=len(offsets) / length_s, arrivals="trace", seconds=length_s + 1e-3,
        outstanding=_outstanding(asked),
    )  # fmt: skip


def slo(asked: Options) -> SloAsked | None:
    """What --slo-ms and its options ask for; None without it."""
    clock = "--rate" if asked.rate is not None else "--trace" if asked.trace is not None else ""
    for option, given in (
        ("--model-free", asked.model_free), ("--slo-only", asked.slo_only), ("--overload", asked.overload)
    ):  # fmt: skip
        if given and clock:
            raise UsageError(f"{option} is of the search for a rate, and {clock} gives one: leave {option} or it out")
        if given and asked.slo_ms is None:
            raise UsageError(f"{option} is of an SLO: add --slo-ms")
    if asked.slo_ms is None:
        _alone("--slo-ms", percentile=asked.percentile, slo_seconds=asked.slo_seconds)
        return None
    if clock and asked.slo_ms == "auto":
        raise UsageError(f"--slo-ms auto is of the search for a rate: with {clock} write milliseconds")
    if asked.percentile is not None and not 0 < asked.percentile < 100:
        raise UsageError(f"--percentile {asked.percentile:g} must lie between 0 and 100, as in 99 or 99.9")
    return SloAsked(
        limit_ms=_limit(asked.slo_ms),
        percentile=asked.percentile,
        seconds=_positive("--slo-seconds", SLO_SECONDS if asked.slo_seconds is None else asked.slo_seconds, LONGEST_S),
        model_free=asked.model_free,
        only=asked.slo_only,
    )


def _limit(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return _positive("--slo-ms", float(text))
    except ValueError:
        raise UsageError(f"--slo-ms {text!r}: write milliseconds, or auto for 5 x the time of a full batch") from None


def _seconds(asked: Options) -> float:
    return _positive("--seconds", SECONDS if asked.seconds is None else asked.seconds, LONGEST_S)


def _outstanding(asked: Options) -> int:
    return OUTSTANDING if asked.outstanding is None else asked.outstanding


def _positive(option: str, value: float, most: float = math.inf) -> float:
    if not 0 < value <= most or math.isinf(value):
        bound = "" if math.isinf(most) else f" and at most {most:g}"
        raise UsageError(f"{option} is {value:g}, must be above 0{bound}")
    return value


def _alone(needed: str, **options: object) -> None:
    """Options that mean nothing without another."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is of {needed}: add it, or leave this out")
