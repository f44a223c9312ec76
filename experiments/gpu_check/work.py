"""The steps that are timed: copies, matrix products, the layer pair, the networks, each with its check.

Seeded inputs and weights lie on the device before the first step. Each piece of work knows how to hold its output
against a reference (networks: FP32 eager; layers and products: FP64), made before the cell's precision is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.gpu_check.cells import Cell, Precision

SEED = 20240229
#: Images whose outputs are compared with FP32 eager.
CHECKED_IMAGES = 8
#: Images that set the statistics of the batch norms.
CALIBRATION_IMAGES = 8
#: Far above rounding (FP16 reaches 0.03 on seeded weights), far below a wrong kernel's error of about 1.
WRONG_SHARE = {"fp32": 5e-3, "tf32": 0.15, "fp16": 0.15, "bf16": 0.3, "bytes": 0.0}
#: Images that differ must give outputs that differ by more than this share of the largest.
DEGENERATE_SHARE = 1e-3

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class WrongOutput(Exception):
    """The step ran, but what it gave is not the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One step and its check: `relative_error(output)` raises WrongOutput if not finite or degenerate."""

    step: Callable[[], Any]
    relative_error: Callable[[Any], float]


def build(cell: Cell, device: str) -> Work:
    """The work of a cell, everything on the device, in the cell's precision."""
    torch.manual_seed(SEED)
    torch.backends.cudnn.benchmark = False
    _set_precision("fp32")  # for the references
    work = {"copy": _copy, "matmul": _matmul, "layer": _layer, "network": _network}[cell.kind](cell, device)
    _set_precision(cell.precision)
    torch.backends.cudnn.benchmark = True
    return work


def _set_precision(precision: Precision) -> None:
    """TF32 only where the cell says so, for matrix products and for convolutions (whose default is on)."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _copy(cell: Cell, device: str) -> Work:
    elements = cell.sizes[0] // 4
    from_host = cell.subject == "h2d"
    # Pinned memory is the driver's to give; without a device there is none, and the host copies to itself.
    source = torch.arange(elements, dtype=torch.int32, device="cpu" if from_host else device)
    source = source.pin_memory() if from_host and device == "cuda" else source
    target = torch.empty(elements, dtype=torch.int32, device=device)

    def relative_error(output: Any) -> float:
        sample = torch.arange(0, elements, max(1, elements // 65_536), dtype=torch.int32)
        if not torch.equal(output[sample.long().to(output.device)].cpu(), sample):
            raise WrongOutput("the copy is not equal to its source")
        return 0.0

    return Work(step=lambda: target.copy_(source, non_blocking=True), relative_error=relative_error)


def _matmul(cell: Cell, device: str) -> Work:
    m, n, k = cell.sizes
    dtype = DTYPES[cell.precision]
    a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
    out = torch.empty((m, n), device=device, dtype=dtype)
    reference = a[:16].double() @ b[:, :16].double()
    return Work(
        step=lambda: torch.matmul(a, b, out=out),
        relative_error=lambda output: _relative_error(output[:16, :16], reference, cell.precision),
    )


def _layer(cell: Cell, device: str) -> Work:
    inputs, outputs, groups, pixels = cell.sizes
    dtype, layout = DTYPES[cell.precision], _memory_format(cell)
    fan_in = 9 * inputs // groups
    weight = torch.randn((outputs, inputs // groups, 3, 3), device=device, dtype=dtype) / fan_in**0.5
    weight = weight.to(memory_format=layout)
    images = _images(cell, (inputs, pixels, pixels), device)
    reference = nn.functional.conv2d(images[:1].double(), weight.double(), padding=1, groups=groups)
    return Work(
        step=lambda: nn.functional.conv2d(images, weight, padding=1, groups=groups),
        relative_error=lambda output: _relative_error(output[:1], reference, cell.precision),
    )


def _network(cell: Cell, device: str) -> Work:
    import timm

    model = timm.create_model(cell.subject, pretrained=False).to(device)
    pixels = cell.sizes[0]
    _calibrate(model, torch.randn((CALIBRATION_IMAGES, 3, pixels, pixels), device=device))
    images = _images(cell, (3, pixels, pixels), device)
    reference = model(images[:CHECKED_IMAGES].float().contiguous())
    model = model.to(dtype=DTYPES[cell.precision], memory_format=_memory_format(cell))
    # The whole network as one graph: a part that fell back to eager would be timed under the wrong name.
    run = torch.compile(model, fullgraph=True, dynamic=False) if cell.mode == "compiled" else model

    def relative_error(output: Any) -> float:
        _refuse_degenerate(output[:CHECKED_IMAGES])
        return _relative_error(output[:CHECKED_IMAGES], reference, cell.precision)

    return Work(step=lambda: run(images), relative_error=relative_error)


def _images(cell: Cell, shape: tuple[int, int, int], device: str) -> Any:
    """A seeded batch, made in the cell's dtype and layout: an FP32 copy beside it would cost the largest batch."""
    empty = torch.empty((cell.batch, *shape), device=device, dtype=DTYPES[cell.precision],
                        memory_format=_memory_format(cell))  # fmt: skip
    return empty.normal_()


def _memory_format(cell: Cell) -> Any:
    return torch.channels_last if cell.layout == "nhwc" else torch.contiguous_format


def _calibrate(model: Any, images: Any) -> None:
    """Give batch norms the statistics of these images: seeded weights then neither vanish nor overflow in FP16."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # A zero here, usual at the start of training, would switch the residual branch off.
            nn.init.ones_(module.weight)
            module.reset_running_stats()
            module.momentum = None  # a plain average: of one batch, its own statistics
    model.train()
    model(images)
    model.eval()


def _relative_error(output: Any, reference: Any, precision: Precision) -> float:
    """max |output - reference| / max |reference|."""
    if not bool(torch.isfinite(output).all()):
        raise WrongOutput("the output is not finite")
    error = float((output.double() - reference.double()).abs().max() / reference.double().abs().max())
    if not error <= WRONG_SHARE[precision]:
        raise WrongOutput(f"the output is off by {error:.3g} of the largest value ({precision})")
    return error


def _refuse_degenerate(output: Any) -> None:
    """Classes must differ within an image, and images from each other."""
    values = output.double()
    bound = DEGENERATE_SHARE * float(values.abs().max())
    if not float(values.std(dim=1).min()) > bound:
        raise WrongOutput("the output is the same for all classes")
    if len(values) > 1 and not float((values[0] - values[1]).abs().max()) > bound:
        raise WrongOutput("the output is the same for all images")
