"""Small convolutional networks as ONNX models, without torch: the demo's, and a smaller one for benchmarks.

Writes out/models/<name>/{model.onnx, card.json}. Imports onnx and numpy only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from brim import disk
from brim.records import ModelCard, Tensor
from export import write

CLASSES = 10
OPSET, IR_VERSION = 18, 10  # what ONNX Runtime 1.18 and everything newer reads
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A 3x3 convolution with padding 1, followed by ReLU unless it is the last."""

    channels: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """3x3 convolutions on a square picture of three channels, then the mean over it and a linear classifier."""

    name: str
    size: int  # pixels a side
    layers: tuple[Layer, ...]


#: One image each 5 to 10 ms and CPU thread.
DEMO = Network(
    name="demo",
    size=64,
    layers=(
        Layer(channels=32, stride=2),
        Layer(channels=64, stride=1),
        Layer(channels=128, stride=2),
        Layer(channels=256, stride=1),
        Layer(channels=256, stride=1),
        Layer(channels=256, stride=2),
    ),
)
#: About half a millisecond an image of 12,288 bytes: what serving adds to a batch is seen beside it.
TINY = Network(
    name="tiny",
    size=32,
    layers=(
        Layer(channels=32, stride=2),
        Layer(channels=64, stride=1),
        Layer(channels=128, stride=2),
        Layer(channels=128, stride=1),
    ),
)


def export_small(out: Path, network: Network = DEMO) -> ModelCard:
    """Write the model and its card under `out`, unless it stands there unchanged; give the card."""
    with write.sole_writer(out):
        recipe = _recipe()
        card = write.unchanged(out, network.name, recipe)
        if card is not None:
            return card
        with write.new_folder(out, network.name) as folder:
            path = folder / write.ARTIFACT
            with disk.told(path):
                path.write_bytes(small_model(network).SerializeToString())
            card = _card(network, recipe, disk.sha256(path))
            disk.save(folder / "card.json", card)
    return card


def _recipe() -> str:
    """Digest of what decides the file: this module, and the version of onnx and numpy."""
    decides = {"code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), **_software()}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _software() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numpy", "onnx")}


def _card(network: Network, recipe: str, digest: str) -> ModelCard:
    return ModelCard(
        name=network.name,
        source=f"brim/{network.name}",
        inputs=(Tensor(name="input", dtype="FP32", shape=(3, network.size, network.size)),),
        outputs=(Tensor(name="output", dtype="FP32", shape=(CLASSES,)),),
        precision="fp32",
        weights=f"seeded:{SEED}",
        artifacts={write.ARTIFACT: digest},
        recipe=recipe,
        software=_software(),
    )


def small_model(network: Network) -> Any:
    """The network as an ONNX ModelProto, checked."""
    rng = np.random.default_rng(SEED)
    nodes: list[Any] = []
    weights: list[Any] = []
    value, channels = "input", 3
    for index, layer in enumerate(network.layers):
        weights.append(_weight(f"conv{index}", _filters(rng, layer.channels, channels)))
        nodes.append(_convolution(index, value, layer))
        value, channels = f"conv{index}_out", layer.channels
        if index < len(network.layers) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"relu{index}"]))
            value = f"relu{index}"
    weights.append(_weight("classes", _classifier(rng, channels)))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "classes"], ["output"], transB=1),
    ]
    shape = (3, network.size, network.size)
    graph = helper.make_graph(
        nodes, network.name, [_port("input", shape)], [_port("output", (CLASSES,))], initializer=weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="brim")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def _convolution(index: int, value: str, layer: Layer) -> Any:
    return helper.make_node(
        "Conv",
        [value, f"conv{index}"],
        [f"conv{index}_out"],
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        strides=[layer.stride, layer.stride],
    )


def _filters(rng: np.random.Generator, out_channels: int, in_channels: int) -> NDArray[Any]:
    """He-scaled filters that sum to zero: what all images share is filtered out, so that outputs tell them apart."""
    drawn = rng.standard_normal((out_channels, in_channels, 3, 3))
    drawn -= drawn.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(drawn * np.sqrt(2 / (9 * in_channels)), np.float32)


def _classifier(rng: np.random.Generator, channels: int) -> NDArray[Any]:
    return np.asarray(rng.standard_normal((CLASSES, channels)), np.float32)


def _weight(name: str, values: NDArray[Any]) -> Any:
    return numpy_helper.from_array(values, name)


def _port(name: str, shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
