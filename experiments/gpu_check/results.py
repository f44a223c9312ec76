"""From the journal to the answers: ceilings, each network's best batch, the ratios, the layer pair, what did not fit.

Pure. Every ratio carries its resolution, precision, mode and batches; its device is that of the whole result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from brim.records import Environment
from experiments.gpu_check.cells import (
    CONVOLUTION,
    DEPTHWISE,
    EFFICIENTNET,
    RESNET,
    Cell,
    Entry,
    Layout,
    Mode,
    Precision,
    expected_s,
    left,
)
from experiments.gpu_check.host import Host

#: The batch at which papers like to compare.
EQUAL_BATCH = 16
#: ResNet-50's pixels against EfficientNet-B3's: both equal, and B3 at the size it was made for.
COMPARED_PIXELS = ((224, 224), (300, 300), (224, 300))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The most that the device reached of one kind of work."""

    what: str  # d2d, h2d, or a precision of matrix products
    per_s: float
    unit: Literal["B/s", "FLOP/s"]
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The batch at which a network gave most images per second, and how far its batches went."""

    subject: str
    pixels: int
    precision: Precision
    layout: Layout
    mode: Mode
    batch: int
    images_per_s: float
    largest_batch: int  # that gave a figure
    complete: bool  # no batch of this series is left to run


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """ResNet-50's images per second over EfficientNet-B3's on the device of this result."""

    claim: Literal["equal_batch", "filled"]
    resnet_pixels: int
    efficientnet_pixels: int
    precision: Precision
    layout: Layout
    mode: Mode
    resnet_batch: int
    efficientnet_batch: int
    resnet_images_per_s: float
    efficientnet_images_per_s: float
    ratio: float
    quartiles: tuple[float, float]  # slow quartile over fast quartile, and the other way round
    complete: bool  # filled: neither network has a larger batch left to run


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFigure:
    """One layer of the pair against the ceilings; None where the ceiling is not measured yet."""

    median_ms: float
    flop_per_byte: float
    flop_per_s: float
    bytes_per_s: float
    flop_share: float | None
    bytes_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """The two layers of equal multiply-accumulates; `ratio` = the depthwise layer's time over the convolution's."""

    precision: Precision
    layout: Layout
    batch: int
    convolution: LayerFigure
    depthwise: LayerFigure
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCheck:
    """gpu-check.json: everything that is known of one device by now."""

    machine_id: str
    device: str
    environment: Environment
    gpu_uuids: tuple[str, ...]  # every device of this kind that contributed
    cells_left: int
    estimated_minutes_left: float
    ceilings: tuple[Ceiling, ...]
    best: tuple[Best, ...]
    ratios: tuple[Ratio, ...]
    layer_pairs: tuple[LayerPair, ...]
    entries: tuple[Entry, ...]

    @property
    def without_figure(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.outcome != "ok")


def conclude(plan: Sequence[Cell], journal: Sequence[Entry], host: Host) -> GpuCheck:
    """All answers that the journal holds so far."""
    remaining = left(plan, journal)
    ceilings = ceilings_of(journal)
    return GpuCheck(
        machine_id=host.machine_id,
        device=host.name,
        environment=host.environment,
        gpu_uuids=tuple(sorted({entry.gpu_uuid for entry in journal if entry.gpu_uuid})),
        cells_left=len(remaining),
        estimated_minutes_left=round(sum(map(expected_s, remaining)) / 60, 1),
        ceilings=tuple(ceilings),
        best=tuple(best_of(journal, remaining)),
        ratios=tuple(ratios_of(journal, remaining)),
        layer_pairs=tuple(layer_pairs_of(journal, ceilings)),
        entries=tuple(journal),
    )


def ceilings_of(journal: Sequence[Entry]) -> list[Ceiling]:
    """The best copy in each direction (bytes read and written) and the best matrix product in each precision."""
    found: dict[str, Ceiling] = {}
    for entry in journal:
        if entry.cell.kind == "copy" and (bytes_per_s := entry.bytes_per_s):
            seen = Ceiling(what=entry.cell.subject, per_s=bytes_per_s, unit="B/s", at=entry.cell.label)
        elif entry.cell.kind == "matmul" and (flop_per_s := entry.flop_per_s):
            seen = Ceiling(what=entry.cell.precision, per_s=flop_per_s, unit="FLOP/s", at=entry.cell.label)
        else:
            continue
        if seen.what not in found or seen.per_s > found[seen.what].per_s:
            found[seen.what] = seen
    return list(found.values())


def best_of(journal: Sequence[Entry], remaining: Sequence[Cell]) -> list[Best]:
    """One line for each series of a network, in the journal's order."""
    open_series = {cell.series for cell in remaining}
    answers = []
    for series, entries in _network_series(journal).items():
        top = max(entries, key=_rate)
        answers.append(
            Best(
                subject=top.cell.subject,
                pixels=top.cell.sizes[0],
                precision=top.cell.precision,
                layout=top.cell.layout,
                mode=top.cell.mode,
                batch=top.cell.batch,
                images_per_s=_rate(top),
                largest_batch=max(entry.cell.batch for entry in entries),
                complete=series not in open_series,
            )
        )
    return answers


def ratios_of(journal: Sequence[Entry], remaining: Sequence[Cell]) -> list[Ratio]:
    """ResNet-50 over EfficientNet-B3 at the equal batch, and filled (each at its own best batch)."""
    open_series = {cell.series for cell in remaining}
    by_way: dict[tuple[Precision, Layout, Mode], dict[tuple[str, int], list[Entry]]] = {}
    for entries in _network_series(journal).values():
        cell = entries[0].cell
        by_way.setdefault((cell.precision, cell.layout, cell.mode), {})[cell.subject, cell.sizes[0]] = entries
    answers = []
    for networks in by_way.values():
        for resnet_pixels, efficientnet_pixels in COMPARED_PIXELS:
            one = networks.get((RESNET, resnet_pixels), [])
            other = networks.get((EFFICIENTNET, efficientnet_pixels), [])
            if not one or not other:
                continue
            pair = _at(one, EQUAL_BATCH), _at(other, EQUAL_BATCH)
            if pair[0] and pair[1]:
                answers.append(_ratio("equal_batch", pair[0], pair[1], complete=True))
            complete = not {one[0].cell.series, other[0].cell.series} & open_series
            answers.append(_ratio("filled", max(one, key=_rate), max(other, key=_rate), complete=complete))
    return answers


def layer_pairs_of(journal: Sequence[Entry], ceilings: Sequence[Ceiling]) -> list[LayerPair]:
    """Both layers where both have a figure."""
    layers = {(e.cell.subject, e.cell.precision, e.cell.layout, e.cell.batch): e for e in journal
              if e.cell.kind == "layer" and e.timing}  # fmt: skip
    top = {ceiling.what: ceiling.per_s for ceiling in ceilings}
    answers = []
    for (subject, precision, layout, batch), convolution in layers.items():
        depthwise = layers.get((DEPTHWISE, precision, layout, batch))
        if subject != CONVOLUTION or depthwise is None:
            continue
        one, other = _layer_figure(convolution, top), _layer_figure(depthwise, top)
        answers.append(
            LayerPair(
                precision=precision,
                layout=layout,
                batch=batch,
                convolution=one,
                depthwise=other,
                ratio=other.median_ms / one.median_ms,
            )
        )
    return answers


def _layer_figure(entry: Entry, top: dict[str, float]) -> LayerFigure:
    assert entry.timing and entry.cell.flop and entry.cell.moved_bytes  # a layer with a figure has all three
    flop_per_s = entry.cell.flop / entry.timing.median_ms * 1e3
    bytes_per_s = entry.cell.moved_bytes / entry.timing.median_ms * 1e3
    compute, copy = top.get(entry.cell.precision), top.get("d2d")
    return LayerFigure(
        median_ms=entry.timing.median_ms,
        flop_per_byte=entry.cell.flop / entry.cell.moved_bytes,
        flop_per_s=flop_per_s,
        bytes_per_s=bytes_per_s,
        flop_share=flop_per_s / compute if compute else None,
        bytes_share=bytes_per_s / copy if copy else None,
    )


def _network_series(journal: Sequence[Entry]) -> dict[tuple[object, ...], list[Entry]]:
    series: dict[tuple[object, ...], list[Entry]] = {}
    for entry in journal:
        if entry.cell.kind == "network" and entry.timing:
            series.setdefault(entry.cell.series, []).append(entry)
    return series


def _ratio(claim: Literal["equal_batch", "filled"], one: Entry, other: Entry, *, complete: bool) -> Ratio:
    assert one.timing and other.timing  # only entries with a figure come here
    slow = (one.cell.batch / one.timing.q3_ms) / (other.cell.batch / other.timing.q1_ms)
    fast = (one.cell.batch / one.timing.q1_ms) / (other.cell.batch / other.timing.q3_ms)
    return Ratio(
        claim=claim,
        resnet_pixels=one.cell.sizes[0],
        efficientnet_pixels=other.cell.sizes[0],
        precision=one.cell.precision,
        layout=one.cell.layout,
        mode=one.cell.mode,
        resnet_batch=one.cell.batch,
        efficientnet_batch=other.cell.batch,
        resnet_images_per_s=_rate(one),
        efficientnet_images_per_s=_rate(other),
        ratio=_rate(one) / _rate(other),
        quartiles=(slow, fast),
        complete=complete,
    )


def _at(entries: Sequence[Entry], batch: int) -> Entry | None:
    return next((entry for entry in entries if entry.cell.batch == batch), None)


def _rate(entry: Entry) -> float:
    return entry.per_s or 0.0
