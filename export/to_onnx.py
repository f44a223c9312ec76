"""A torch module to one ONNX file with a free batch dimension, checked by onnx itself.

Writes one file. What torch's exporter prints and warns of goes to `-v`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from brim import disk
from brim.errors import BrimError, UsageError
from brim.records import Tensor
from brim.say import Say
from export.recipes import Recipe

INPUT, OUTPUT = "input", "output"
MAX_BATCH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The file's inputs and outputs in Triton's words."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def write_onnx(module: Any, recipe: Recipe, path: Path, say: Say) -> Exported:
    """Export `module` for square FP32 images and write it to `path`."""
    example = torch.zeros(2, 3, recipe.size, recipe.size)
    try:
        with quiet(say):
            model = _export(module, example, recipe.opset)
    except BrimError:
        raise
    except Exception as error:  # torch's exporter lets through whatever a network's code meets
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"{recipe.name}: torch cannot export it ({type(error).__name__}: {why})") from error
    strip(model)
    check(model, recipe.name)
    with disk.told(path):
        path.write_bytes(model.SerializeToString())
    return _described(model, recipe.name)


def _export(module: Any, example: Any, opset: int) -> Any:
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        external_data=False,
        verbose=False,
    )
    return program.model_proto


def strip(model: Any) -> None:
    """Remove the exporter's notes on where code came from: they hold paths of this machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]


def check(model: Any, name: str) -> None:
    """onnx's own checker, shapes inferred and compared; and a batch dimension that is really free."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{name}: the graph does not pass onnx.checker ({why}); try another opset") from error
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim[0].HasField("dim_value"):
            raise UsageError(f"{name}: {value.name!r} has a fixed batch dimension; the network depends on it")


def _described(model: Any, name: str) -> Exported:
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise UsageError(
            f"{name}: {len(model.graph.input)} inputs and {len(model.graph.output)} outputs; "
            "image models with one of each are exported"
        )
    graph = model.graph
    return Exported(inputs=tuple(map(_tensor, graph.input)), outputs=tuple(map(_tensor, graph.output)))


def _tensor(value: Any) -> Tensor:
    kind = value.type.tensor_type
    word = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}[kind.elem_type]
    return Tensor(name=value.name, dtype=word, shape=tuple(dim.dim_value or -1 for dim in kind.shape.dim[1:]))


@contextlib.contextmanager
def quiet(say: Say) -> Iterator[None]:
    """Send what libraries print and warn of to `-v` while the block runs."""
    heard = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(heard),
            contextlib.redirect_stderr(heard),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        for line in heard.getvalue().splitlines():
            say.detail(line)
