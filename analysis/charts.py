"""The report's charts: probes to SVG that stands inside the page and takes its colours from the page's style.

Pure: equal probes give equal bytes. Nothing foreign but the item's name gets into a chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from markupsafe import Markup
from matplotlib.axes import Axes

from analysis.drawing import CEILING, MOST_MARKS, OTHER, OWN, PAPER, POINT, canvas, svg
from analysis.probes import Split, of_the_curve
from analysis.words import clean, number
from brim.records import Probe, Saturation

#: Purpose of a load -> marker, colour and words; the shapes tell them apart without colour.
_KINDS: Mapping[str, tuple[str, str, str]] = {
    "cross_check": ("s", OTHER, "the other generator"),
    "search": ("o", OWN, "search"),
    "one_more_sender": ("^", OWN, "one more sender"),
    "transfer": ("v", OWN, "other data path"),
    "figure": ("D", OWN, "figure"),
}
#: More bars than this are put together.
_MOST_BARS = 40
_MOST_LEVELS = 14
#: More ticks than this run into each other.
_MOST_TICKS = 12


def curve(probes: Sequence[Probe], answer: Saturation | None, item: str) -> Markup:
    """Throughput, and p99 below it, against requests in flight; hollow marks are of loads that were not steady."""
    drawn = [p for p in probes if p.items_per_s is not None and p.at.concurrency is not None][:MOST_MARKS]
    if not drawn:
        return Markup("")
    with canvas(5.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _throughput(upper, drawn, answer, item)
        _latency(lower, drawn)
        _load_point(upper, lower, answer)
        _concurrency_axis(lower, drawn)
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return svg(figure, "Throughput and p99 latency against requests in flight")


def batches(shares: Mapping[int, float], max_batch: int) -> Markup:
    """Share of the items by the size of the batch that they were in."""
    if not shares:
        return Markup("")
    bars = _bars(shares, max(max_batch, *shares))
    with canvas(2.5) as figure:
        axes = figure.subplots()
        axes.bar(range(len(bars)), [100 * share for _, share in bars], color=OWN, width=0.8)
        axes.set(ylim=(0, 115 * max(share for _, share in bars)), ylabel="% of the items", xlabel="batch size")
        every = math.ceil(len(bars) / _MOST_TICKS)
        axes.set_xticks(range(0, len(bars), every), [label for label, _ in bars[::every]])
        axes.grid(visible=False, axis="x")
        for position, (_, share) in enumerate(bars if len(bars) <= 2 * _MOST_TICKS else ()):
            if share:
                axes.annotate(_percent(share), (position, 100 * share), (0, 2), textcoords="offset points", ha="center")
        return svg(figure, "Share of the items by the size of the batch that they were in")


def time(splits: Sequence[Split]) -> Markup:
    """Mean milliseconds of a request in the queue, in the engine and outside the server, by requests in flight."""
    if not splits:
        return Markup("")
    shown = _thinned(splits, _MOST_LEVELS)
    with canvas(1.2 + 0.32 * len(shown)) as figure:
        axes = figure.subplots()
        begin = [0.0] * len(shown)
        for part, colour, hatch in (("queue", OTHER, "//"), ("engine", OWN, ""), ("outside", CEILING, "\\\\")):
            widths = [max(0.0, getattr(split, part)) for split in shown]
            axes.barh(range(len(shown)), widths, left=begin, color=colour, height=0.7, label=_PARTS[part], hatch=hatch,
                      edgecolor=PAPER, linewidth=0)  # fmt: skip
            begin = [left + width for left, width in zip(begin, widths, strict=True)]
        axes.set_yticks(range(len(shown)), [str(split.concurrency) for split in shown])
        axes.set(xlabel="ms of a request, mean", ylabel="in flight")
        axes.grid(visible=False, axis="y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return svg(figure, "Mean time of a request in the queue, in the engine and outside the server")


_PARTS = {"queue": "waits in the server's queue", "engine": "in the engine", "outside": "outside: transport, client"}


def _throughput(axes: Axes, probes: Sequence[Probe], answer: Saturation | None, item: str) -> None:
    curve_points: dict[int, list[float]] = {}
    for probe in probes:
        if of_the_curve(probe) and probe.items_per_s is not None:
            curve_points.setdefault(probe.at.concurrency or 1, []).append(probe.items_per_s)
    levels = sorted(curve_points)
    axes.plot(levels, [median(curve_points[n]) for n in levels], color=OWN, linewidth=1.2)
    for purpose, (marker, colour, words) in _KINDS.items():
        of_kind = [p for p in probes if p.purpose == purpose]
        for steady in (True, False):
            _marks(axes, [p for p in of_kind if (p.verdict == "steady") is steady], marker, colour, words, steady)
    if answer is not None and answer.in_process_items_per_s is not None:
        axes.axhline(answer.in_process_items_per_s, color=CEILING, linestyle="--", label="the engine alone")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.set_ylabel(f"{clean(item, 24)}s/s")


def _marks(axes: Axes, probes: Sequence[Probe], marker: str, colour: str, words: str, steady: bool) -> None:
    if not probes:
        return
    rates = [p.items_per_s or 0.0 for p in probes]
    low = [max(0.0, r - (p.ci95[0] if p.ci95 else r)) for p, r in zip(probes, rates, strict=True)]
    high = [max(0.0, (p.ci95[1] if p.ci95 else r) - r) for p, r in zip(probes, rates, strict=True)]
    axes.errorbar(
        [p.at.concurrency or 1 for p in probes], rates, yerr=(low, high), fmt=marker, color=colour, markersize=6,
        markerfacecolor=colour if steady else "none", elinewidth=1, label=words if steady else f"{words}, not steady",
    )  # fmt: skip


def _latency(axes: Axes, probes: Sequence[Probe]) -> None:
    for purpose, (marker, colour, _) in _KINDS.items():
        told = [(p.at.concurrency or 1, p.latency_ms.p99) for p in probes if p.purpose == purpose and p.latency_ms]
        if told:
            axes.plot([n for n, _ in told], [ms for _, ms in told], marker, color=colour, markersize=5)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.set(ylabel="p99, ms", xlabel="requests in flight")


def _load_point(upper: Axes, lower: Axes, answer: Saturation | None) -> None:
    if answer is None or answer.items_per_s is None or answer.at.concurrency is None:
        return
    for axes in (upper, lower):
        axes.axvline(answer.at.concurrency, color=POINT, linewidth=1.4, linestyle=":")
    if answer.ci95 is not None:
        upper.axhspan(*answer.ci95, color=POINT, alpha=0.25, linewidth=0)
    upper.annotate(
        f"load point: {number(answer.items_per_s)}", (answer.at.concurrency, 0), (5, 5), textcoords="offset points",
    )  # fmt: skip


def _concurrency_axis(axes: Axes, probes: Sequence[Probe]) -> None:
    levels = sorted({p.at.concurrency or 1 for p in probes})
    axes.set_xscale("log", base=2)
    axes.set_xlim(levels[0] / 1.3, levels[-1] * 1.3)
    axes.set_xticks(_apart(levels), [str(n) for n in _apart(levels)])
    axes.set_xticks([], minor=True)


def _apart(levels: Sequence[int]) -> list[int]:
    """Levels whose labels have room beside each other on a logarithmic axis."""
    room = max(math.log(levels[-1] / levels[0]) / _MOST_TICKS, 1e-9)
    kept = [levels[0]]
    for level in levels[1:]:
        if math.log(level / kept[-1]) >= room:
            kept.append(level)
    return kept


def _bars(shares: Mapping[int, float], largest: int) -> list[tuple[str, float]]:
    """Label and share of each bar: every size on its own, or equal ranges of sizes where there are too many."""
    width = math.ceil(largest / _MOST_BARS)
    bars = [0.0] * math.ceil(largest / width)
    for size, share in shares.items():
        bars[(size - 1) // width] += share
    ends = [(1 + i * width, min((i + 1) * width, largest)) for i in range(len(bars))]
    return [(str(a) if a == b else f"{a}–{b}", share) for (a, b), share in zip(ends, bars, strict=True)]


def _thinned(splits: Sequence[Split], most: int) -> list[Split]:
    if len(splits) <= most:
        return list(splits)
    return [splits[round(i * (len(splits) - 1) / (most - 1))] for i in range(most)]


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else "<1%"
