"""The result in words: one progress line a cell, and gpu-check.md. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.gpu_check.cells import Cell, Entry, expected_s
from experiments.gpu_check.results import Best, Ceiling, GpuCheck, LayerFigure, LayerPair, Ratio

NOTES = """\
## How it was measured

- Each cell ran alone in a fresh process: inputs and seeded weights on the device, `torch.inference_mode`, cuDNN
  autotuning on, warm-up, a soak until the times were flat (or its time was up), then the median of the repeats by
  device events.
- fp32 = TF32 off for convolutions and matrix products; tf32 = on for both; nhwc = channels-last.
- compiled = `torch.compile(fullgraph=True, dynamic=False)`, default mode: no CUDA graphs, no max-autotune, no
  freezing.
- Copies count bytes read and written on the device (`d2d`), or bytes moved once from pinned host memory (`h2d`). A
  matrix product counts 2 x M x N x K FLOP, a layer 2 FLOP per multiply-accumulate. A layer's bytes are each input,
  weight and output once, so a share of the copy ceiling above 100% means that a cache helped.
- Outputs were held against FP32 eager (ceilings and layers: FP64), and refused if not finite or equal for all images.
- Batches double until one does not fit; "filled" = each network at the batch that gave it most images per second.
"""


def progress(entry: Entry, remaining: Sequence[Cell]) -> str:
    """What became of a cell, and what is left."""
    minutes = sum(map(expected_s, remaining)) / 60
    left = f"{len(remaining)} left, at most {minutes:.0f} min"
    return f"{entry.cell.label}: {figure(entry)} ({entry.seconds:.0f} s); {left}"


def figure(entry: Entry) -> str:
    """The one number of an entry in its unit, or why there is none."""
    if entry.per_s is None:
        return f"{entry.outcome}{': ' + entry.reason if entry.outcome not in ('oom', 'timeout') else ''}"
    if entry.cell.kind == "network":
        return f"{_count(entry.per_s)} images/s"
    if entry.cell.kind == "copy" and entry.bytes_per_s:
        return f"{_count(entry.bytes_per_s / 1e9)} GB/s"
    return f"{(entry.flop_per_s or 0) / 1e12:.3g} TFLOP/s"


def markdown(result: GpuCheck) -> str:
    """The whole result as one Markdown document."""
    sections = [
        f"# GPU check: {result.device}\n\n{_state(result)}\n\n{_environment(result)}",
        "## Device ceilings\n\n" + _ceilings(result.ceilings),
        *_images_per_s(result.entries),
        "## Best batch of each network\n\n" + _best(result),
        f"## ResNet-50 over EfficientNet-B3, images/s, on {result.device}\n\n" + _ratios(result.ratios),
        f"## Layer pair: equal multiply-accumulates, on {result.device}\n\n" + _layer_pairs(result),
        "## What did not fit, and what failed\n\n" + _without_figure(result),
        NOTES,
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def summary(result: GpuCheck) -> str:
    """The few lines that the command ends with."""
    lines = [f"{c.what}: {_ceiling(c)}" for c in result.ceilings]
    lines += [
        f"ResNet-50@{r.resnet_pixels} over EfficientNet-B3@{r.efficientnet_pixels} on {result.device}, "
        f"{r.mode} {_way(r)}, {_claim(r)}: {r.ratio:.2f}x "
        f"({_count(r.resnet_images_per_s)} against {_count(r.efficientnet_images_per_s)} images/s)"
        for r in result.ratios
    ]
    return "\n".join([*lines, _state(result)])


def _state(result: GpuCheck) -> str:
    done = len(result.entries)
    if not result.cells_left:
        return f"Complete: {done} cells, {len(result.without_figure)} of them without a figure."
    return (
        f"Not complete: {done} cells done, {result.cells_left} left (at most "
        f"{result.estimated_minutes_left:.0f} minutes; batches that do not fit drop out); run again to go on."
    )


def _environment(result: GpuCheck) -> str:
    facts = {**result.environment.machine, **result.environment.software}
    return _table(("environment", ""), [*facts.items(), ("devices", ", ".join(result.gpu_uuids) or "-")])


def _ceilings(ceilings: Sequence[Ceiling]) -> str:
    return _table(("what", "reached", "at"), ((c.what, _ceiling(c), c.at) for c in ceilings))


def _ceiling(ceiling: Ceiling) -> str:
    if ceiling.unit == "B/s":
        return f"{_count(ceiling.per_s / 1e9)} GB/s"
    return f"{ceiling.per_s / 1e12:.3g} TFLOP/s"


def _images_per_s(entries: Sequence[Entry]) -> Iterable[str]:
    """One table for each way to run: a row a batch, a column a network."""
    networks = [entry for entry in entries if entry.cell.kind == "network"]
    for way in dict.fromkeys((e.cell.mode, e.cell.precision, e.cell.layout) for e in networks):
        here = {(e.cell.batch, e.cell.subject, e.cell.sizes[0]): e for e in networks
                if (e.cell.mode, e.cell.precision, e.cell.layout) == way}  # fmt: skip
        columns = sorted({key[1:] for key in here}, key=lambda column: (column[1], column[0]))
        rows = [
            (str(batch), *(_short(here.get((batch, *column))) for column in columns))
            for batch in sorted({key[0] for key in here})
        ]
        title = f"## Images per second: {' '.join(way)}\n\n"
        yield title + _table(("batch", *(f"{subject}@{pixels}" for subject, pixels in columns)), rows)


def _short(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    return _count(entry.per_s) if entry.per_s is not None else entry.outcome


def _best(result: GpuCheck) -> str:
    return _table(
        ("network", "mode", "precision", "best batch", "images/s", "largest batch that fits"),
        (
            (f"{b.subject}@{b.pixels}", b.mode, _way(b), str(b.batch), _count(b.images_per_s),
             f"{b.largest_batch}{'' if b.complete else ' (so far)'}")
            for b in result.best
        ),
    )  # fmt: skip


def _ratios(ratios: Sequence[Ratio]) -> str:
    return _table(
        ("pixels", "mode", "precision", "compared", "ResNet-50", "EfficientNet-B3", "ratio", "quartiles"),
        (
            (_pixels(r), r.mode, _way(r), _claim(r), _count(r.resnet_images_per_s),
             _count(r.efficientnet_images_per_s), f"{r.ratio:.2f}",
             f"{r.quartiles[0]:.2f} to {r.quartiles[1]:.2f}")
            for r in ratios
        ),
    )  # fmt: skip


def _pixels(ratio: Ratio) -> str:
    same = ratio.resnet_pixels == ratio.efficientnet_pixels
    return f"both {ratio.resnet_pixels}" if same else f"{ratio.resnet_pixels} / {ratio.efficientnet_pixels}"


def _claim(ratio: Ratio) -> str:
    if ratio.claim == "equal_batch":
        return f"equal batch {ratio.resnet_batch}"
    return f"filled ({ratio.resnet_batch} / {ratio.efficientnet_batch}){'' if ratio.complete else ', so far'}"


def _layer_pairs(result: GpuCheck) -> str:
    return _table(
        ("way", "batch", "layer", "ms", "FLOP/byte", "TFLOP/s (of ceiling)", "GB/s (of ceiling)", "depthwise/conv"),
        (
            row
            for pair in result.layer_pairs
            for row in (
                (_way(pair), str(pair.batch), "3x3, 100 to 100", *_layer(pair.convolution), ""),
                (_way(pair), str(pair.batch), "3x3 depthwise, 10,000", *_layer(pair.depthwise), f"{pair.ratio:.1f}x"),
            )
        ),
    )


def _way(answer: Best | Ratio | LayerPair) -> str:
    return f"{answer.precision} {answer.layout}"


def _layer(layer: LayerFigure) -> tuple[str, str, str, str]:
    return (
        f"{layer.median_ms:.4g}",
        f"{layer.flop_per_byte:.1f}",
        f"{layer.flop_per_s / 1e12:.3g}{_share(layer.flop_share)}",
        f"{_count(layer.bytes_per_s / 1e9)}{_share(layer.bytes_share)}",
    )


def _share(share: float | None) -> str:
    return f" ({share:.0%})" if share is not None else ""


def _without_figure(result: GpuCheck) -> str:
    return _table(
        ("cell", "outcome", "what it said"),
        ((e.cell.label, e.outcome, e.reason.replace("|", "/")) for e in result.without_figure),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, or `None yet.`"""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return "None yet."
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines])


def _count(value: float | None) -> str:
    """Three significant digits below 1000, whole numbers above."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
