"""Charts of rates that a sender keeps: latency over time, the share over an SLO's limit, and goodput beyond it.

Pure: equal records give equal bytes. Names of policies and of the item are the only foreign text, and are cleaned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from analysis.drawing import CEILING, GRID, INK, MOST_MARKS, OTHER, OWN, POINT, canvas, svg
from analysis.open_loop import ObservedLoop
from analysis.words import clean, number
from brim.records import Overload, OverloadPoint, SloRate, SloTrial

#: Colour, line and marker of each policy in turn; the shapes tell them apart without colour.
_POLICIES = ((OWN, "-", "o"), (OTHER, "--", "s"), (CEILING, "-.", "D"), (POINT, ":", "^"), (INK, "-", "v"))
#: None late has no place on a logarithmic axis: such a trial is drawn, hollow, at this part of the SLO's share.
_NONE_AT = 0.02


def latency_over_time(seen: ObservedLoop) -> Markup:
    """Median and slowest request by the instant that it was due, with those that were late and those that were lost."""
    told = seen.slices
    if not told:
        return Markup("")
    with canvas(3.4) as figure:
        axes = figure.subplots()
        at = [s.at_s for s in told]
        late = seen.late
        words = f"over {number(seen.late_over_ms)} ms" if seen.limit_ms is not None else "slowest 1%"
        if late:
            axes.plot(
                [s for s, _ in late], [ms for _, ms in late], "o", color=OWN, markersize=3, alpha=0.7, label=words
            )
        axes.plot(at, [s.p50 for s in told], color=OWN, linewidth=1.6, label="median")
        axes.plot(at, [s.most for s in told], color=OWN, linewidth=0.8, label="slowest, from intended")
        axes.plot(at, [s.most_from_sent for s in told], "--", color=OTHER, linewidth=1.1, label="slowest, from sent")
        if seen.limit_ms is not None:
            axes.axhline(seen.limit_ms, color=POINT, linestyle=":", linewidth=1.4, label="the limit")
        top = 1.1 * max(axes.get_ylim()[1], seen.limit_ms or 0.0)
        if seen.lost:
            axes.plot(
                seen.lost, [0.97 * top] * len(seen.lost), "x", color=OTHER, markersize=4, label="not answered well"
            )
        axes.set(ylim=(0, top), xlim=(0, seen.seconds), ylabel="ms", xlabel="due, seconds from the start")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return svg(figure, "Latency from the intended time over the load")


def over_the_limit(found: SloRate, item: str) -> Markup:
    """Share of requests over the limit against the offered rate, logarithmic: measured, foreseen, the rate found."""
    trials = found.trials[:MOST_MARKS]
    if not trials:
        return Markup("")
    allowed = found.slo.over_allowed
    floor = 100 * allowed * _NONE_AT
    with canvas(3.6) as figure:
        axes = figure.subplots()
        _foreseen(axes, trials, floor)
        measured = [(t.items_per_s, 100 * t.over_share) for t in trials]
        for some, words in ((True, "measured"), (False, "measured: none")):
            of_kind = [(rate, share) for rate, share in measured if (share > 0) is some]
            if of_kind:
                rates, shares = [rate for rate, _ in of_kind], [max(share, floor) for _, share in of_kind]
                fill = OWN if some else "none"
                axes.plot(rates, shares, "o", color=OWN, markersize=6, markerfacecolor=fill, label=words)
        axes.axhline(100 * allowed, color=INK, linestyle="--", linewidth=1, label=f"{100 * allowed:.3g}% allowed")
        _found_rate(axes, found)
        axes.set_yscale("log")
        axes.set_ylim(floor / 2, max(200 * allowed, *(1.6 * share for _, share in measured)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(ylabel=f"% over {found.slo.limit_ms:g} ms", xlabel=f"offered, {clean(item, 24)}s/s")
        _room_beside(axes, [t.items_per_s for t in trials], found.ci95)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
        return svg(figure, "Share of the requests over the limit against the offered rate")


def _foreseen(axes: Axes, trials: Sequence[SloTrial], floor: float) -> None:
    """What the simulator said of the same arrivals, tied to what was measured, and of that rate in the long run."""
    told = [(t.items_per_s, max(100 * t.foreseen_share, floor), max(100 * t.over_share, floor)) for t in trials
            if t.foreseen_share is not None]  # fmt: skip
    if told:
        rates, shares = [rate for rate, _, _ in told], [foreseen for _, foreseen, _ in told]
        axes.vlines(rates, shares, [measured for _, _, measured in told], color=GRID, linewidth=1.2, zorder=1)
        axes.plot(rates, shares, "s", color=OTHER, markerfacecolor="none", markersize=9, label="foreseen of the same")
    long_run = sorted(
        {(t.items_per_s, max(100 * t.long_run_share, floor)) for t in trials if t.long_run_share is not None}
    )
    if long_run:
        axes.plot([r for r, _ in long_run], [s for _, s in long_run], "_-", color=CEILING, markersize=12, linewidth=0.8,
                  label="foreseen, long run")  # fmt: skip


def _found_rate(axes: Axes, found: SloRate) -> None:
    if found.items_per_s is None:
        return
    axes.axvline(
        found.items_per_s, color=POINT, linewidth=1.4, linestyle=":", label=f"the rate, {number(found.items_per_s)}"
    )
    if found.ci95 is not None:
        axes.axvspan(*found.ci95, color=POINT, alpha=0.2, linewidth=0)


def _room_beside(axes: Axes, rates: Sequence[float], ci95: tuple[float, float] | None) -> None:
    drawn = [*rates, *(bound for bound in ci95 or () if math.isfinite(bound))]
    room = 0.06 * (max(drawn) - min(drawn)) or 0.05 * max(drawn)
    axes.set_xlim(min(drawn) - room, max(drawn) + room)


def goodput(found: Overload, item: str) -> Markup:
    """Goodput against offered rate, a curve for each policy; below it what was rejected and what expired."""
    policies = by_policy(found.points)
    if not policies:
        return Markup("")
    most = max(point.offered for point in found.points)
    with canvas(5.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        upper.plot([0, most], [0, most], color=GRID, linewidth=1.2, label="all of it")
        for (policy, points), (colour, line, marker) in zip(policies.items(), _POLICIES, strict=False):
            offered, words = [p.offered for p in points], clean(policy, 40)
            upper.plot(offered, [p.good for p in points], line, marker=marker, color=colour, markersize=5, label=words)
            for fill, kind in ((colour, "rejected"), ("none", "expired")):
                values = [getattr(p, kind) for p in points]
                if any(values):
                    lower.plot(offered, values, line, marker=marker, markersize=5, color=colour, markerfacecolor=fill)
        for axes in (upper, lower):
            axes.axvline(found.items_per_s, color=POINT, linewidth=1.4, linestyle=":")
        upper.annotate("the SLO rate", (found.items_per_s, 0), (5, 5), textcoords="offset points")
        unit = f"{clean(item, 24)}s/s"
        upper.set(ylim=(0, 1.08 * max(found.items_per_s, *(p.good for p in found.points))), ylabel=f"in time, {unit}")
        lower.set(ylim=(0, max(1.0, 1.08 * lower.get_ylim()[1])), xlim=(0, 1.03 * most), xlabel=f"offered, {unit}")
        lower.set_ylabel("filled: rejected\nhollow: expired")
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return svg(figure, "Goodput against the offered rate, by queue policy")


def by_policy(points: Sequence[OverloadPoint]) -> dict[str, list[OverloadPoint]]:
    """The points of each policy by offered rate; policies in their own order, as many as are told apart."""
    found: dict[str, list[OverloadPoint]] = {}
    for point in points:
        found.setdefault(point.policy, []).append(point)
    return {policy: sorted(there, key=lambda p: p.offered) for policy, there in list(found.items())[: len(_POLICIES)]}
