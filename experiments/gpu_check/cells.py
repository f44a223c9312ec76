"""What `brim gpu-check` measures and in which order: cells, what became of them, and which one is next.

Pure: reads and writes nothing. A cell is one configuration measured in one fresh process; the journal is the list
of entries so far. The most important cells come first, so that a run which is stopped early has answered most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from brim.errors import InvalidRecord

Kind = Literal["copy", "matmul", "network", "layer"]
Precision = Literal["fp32", "tf32", "fp16", "bf16", "bytes"]
Layout = Literal["nchw", "nhwc", "flat"]
Mode = Literal["eager", "compiled"]
Outcome = Literal["ok", "oom", "timeout", "failed", "crash"]

#: 16 first: the article's equal batch. Then those that fill the device; 32768 ends the doubling.
NETWORK_BATCHES = (16, 256, 64, 1, 512, 1024, 2048, 4096, 8192, 16384, 32768)
#: 64 images of the depthwise layer are 2.0e9 elements: beyond 2^31 kernels fall back or refuse.
LAYER_BATCHES = (1, 16, 64)
RESNET, EFFICIENTNET = "resnet50", "efficientnet_b3"
NETWORKS = ((RESNET, 224), (EFFICIENTNET, 224), (EFFICIENTNET, 300), (RESNET, 300))
#: The layer pair: input channels, output channels, groups, pixels.
CONVOLUTION, DEPTHWISE = "conv3x3_100", "depthwise3x3_10000"
LAYERS = {CONVOLUTION: (100, 100, 1, 56), DEPTHWISE: (10_000, 10_000, 10_000, 56)}
MATMUL_SIDES = (8192, 16384, 4096)
COPY_BYTES = {"d2d": 4 * 2**30, "h2d": 2**30}
#: Bytes of one element while it is in memory (TF32 is FP32 in memory).
ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "bytes": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration.

    `sizes`: copy (bytes), matmul (m, n, k), network (pixels), layer (input channels, output channels, groups, pixels).
    """

    kind: Kind
    subject: str  # d2d, h2d, square, a timm name, or a layer's name
    sizes: tuple[int, ...]
    precision: Precision
    layout: Layout = "flat"
    mode: Mode = "eager"
    batch: int = 1

    def __post_init__(self) -> None:
        wanted = {"copy": 1, "matmul": 3, "network": 1, "layer": 4}[self.kind]
        if len(self.sizes) != wanted or min(self.sizes) < 1 or self.batch < 1:
            raise InvalidRecord(f"{self.kind} {self.subject}: sizes {self.sizes}, batch {self.batch} do not fit")

    @property
    def series(self) -> tuple[object, ...]:
        """Everything but the batch: the cells in which only the batch grows."""
        return (self.kind, self.subject, self.sizes, self.precision, self.layout, self.mode)

    @property
    def label(self) -> str:
        if self.kind == "copy":
            return f"copy {self.subject} {self.sizes[0] / 2**30:.3g} GiB"
        if self.kind == "matmul":
            return f"matmul {'x'.join(map(str, self.sizes))} {self.precision}"
        way = f"{self.mode} {self.precision} {self.layout}"
        return f"{self.subject}@{self.sizes[-1]} {way} batch {self.batch}"

    @property
    def flop(self) -> int | None:
        """Floating-point operations of one step, 2 per multiply-accumulate; None where not counted."""
        if self.kind == "matmul":
            m, n, k = self.sizes
            return 2 * m * n * k
        return 2 * layer_macs(self) * self.batch if self.kind == "layer" else None

    @property
    def moved_bytes(self) -> int | None:
        """Bytes that one step must at least move: each input, weight, output once; None where not counted."""
        if self.kind == "copy":
            return self.sizes[0] * (2 if self.subject == "d2d" else 1)
        if self.kind != "layer":
            return None
        inputs, outputs, groups, pixels = self.sizes
        weights = 9 * inputs // groups * outputs
        return ((inputs + outputs) * pixels**2 * self.batch + weights) * ELEMENT_BYTES[self.precision]


def layer_macs(cell: Cell) -> int:
    """Multiply-accumulates of a 3x3 convolution, one image: 9 (in / groups) out h w (padding counted)."""
    inputs, outputs, groups, pixels = cell.sizes
    return 9 * inputs // groups * outputs * pixels**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of one step, over repeats of `steps_per_repeat` steps, after `soak_s` of the same work."""

    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    max_ms: float
    repeats: int
    steps_per_repeat: int
    soak_s: float
    flat: bool  # the soak ended because the times had stopped moving, not because its time was up

    def __post_init__(self) -> None:
        ordered = (0.0, self.min_ms, self.q1_ms, self.median_ms, self.q3_ms, self.max_ms)
        if list(ordered) != sorted(ordered) or self.median_ms <= 0:
            raise InvalidRecord(f"timing out of order: {ordered}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What nvidia-smi reads; None where it has no answer."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    used_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the journal: a cell and what became of it. A cell that did not fit is an answer too."""

    cell: Cell
    outcome: Outcome
    reason: str = ""
    timing: Timing | None = None
    first_step_s: float | None = None  # compilation, autotuning and first run
    peak_bytes: int | None = None  # of the device's allocator
    relative_error: float | None = None  # max |difference| / max |reference|
    idle: Telemetry | None = None  # before the first step
    loaded: Telemetry | None = None  # with the same steps still running behind the last repeat
    gpu_uuid: str = ""
    seconds: float = 0.0  # of the whole process
    started_utc: str = ""

    def __post_init__(self) -> None:
        if (self.outcome == "ok") != (self.timing is not None):
            raise InvalidRecord(f"{self.cell.label}: outcome {self.outcome} contradicts timing {self.timing}")

    @property
    def per_s(self) -> float | None:
        """Images (of a ceiling: steps) per second at the median."""
        return self.cell.batch / self.timing.median_ms * 1e3 if self.timing else None

    @property
    def flop_per_s(self) -> float | None:
        return self.cell.flop / self.timing.median_ms * 1e3 if self.timing and self.cell.flop else None

    @property
    def bytes_per_s(self) -> float | None:
        moved = self.cell.moved_bytes
        return moved / self.timing.median_ms * 1e3 if self.timing and moved else None


# ---------------------------------------------------------------------------- the plan


def plan() -> list[Cell]:
    """Every cell, the most important first; batches too large for the device are skipped by next_cell."""
    return [
        *_ceilings(),
        *_networks("fp16", "eager"),
        *_layers(),
        *_networks("tf32", "eager"),
        *_networks("fp16", "compiled"),
        *_networks("fp32", "eager"),
        *_networks("tf32", "compiled"),
        *_networks("fp32", "compiled"),
    ]


def _ceilings() -> Iterator[Cell]:
    for subject, size in COPY_BYTES.items():
        yield Cell(kind="copy", subject=subject, sizes=(size,), precision="bytes")
    precisions: tuple[Precision, ...] = ("fp16", "bf16", "tf32", "fp32")
    for side, precision in product(MATMUL_SIDES, precisions):
        yield Cell(kind="matmul", subject="square", sizes=(side, side, side), precision=precision)


def _networks(precision: Precision, mode: Mode) -> Iterator[Cell]:
    """The networks alternate at each batch, so that what drifts (heat, clocks) meets both."""
    layout: Layout = "nhwc" if precision == "fp16" else "nchw"
    for batch, (name, pixels) in product(NETWORK_BATCHES, NETWORKS):
        yield Cell(kind="network", subject=name, sizes=(pixels,), precision=precision, layout=layout,
                   mode=mode, batch=batch)  # fmt: skip


def _layers() -> Iterator[Cell]:
    ways: tuple[tuple[Precision, Layout], ...] = (
        ("fp32", "nchw"),
        ("tf32", "nchw"),
        ("fp16", "nhwc"),
        ("fp16", "nchw"),
    )
    for (precision, layout), batch, (name, sizes) in product(ways, LAYER_BATCHES, LAYERS.items()):
        yield Cell(kind="layer", subject=name, sizes=sizes, precision=precision, layout=layout, batch=batch)


# ---------------------------------------------------------------------------- what is next


def left(cells: Sequence[Cell], journal: Sequence[Entry]) -> list[Cell]:
    """The cells still to run, in order: not yet in the journal, and of a series that can still grow."""
    done = {entry.cell for entry in journal}
    return [cell for cell in cells if cell not in done and not _too_large(cell, journal)]


def next_cell(cells: Sequence[Cell], journal: Sequence[Entry]) -> Cell | None:
    """The cell to run now, or None when all is answered."""
    return next(iter(left(cells, journal)), None)


def _too_large(cell: Cell, journal: Sequence[Entry]) -> bool:
    """A smaller batch of its series did not fit into memory or time, or two smaller ones failed otherwise."""
    ended = [e.outcome for e in journal if e.cell.series == cell.series and e.cell.batch < cell.batch]
    return "oom" in ended or "timeout" in ended or ended.count("failed") + ended.count("crash") >= 2


def expected_s(cell: Cell) -> float:
    """Seconds a cell takes on an H200-class host, process start and imports included: for the estimate only."""
    if cell.kind != "network":
        return 9.0
    return (14.0 if cell.mode == "eager" else 50.0) + cell.batch / 512


def limit_s(cell: Cell) -> float:
    """Seconds after which a cell is ended and recorded as `timeout`."""
    if cell.kind != "network":
        return 90.0
    return 180.0 if cell.mode == "eager" else 300.0
