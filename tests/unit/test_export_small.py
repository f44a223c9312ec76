"""The demo network computes what plain numpy computes from its weights, tells images apart, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from brim import disk, layout
from brim.layout import CHECKOUT
from brim.records import ModelCard
from engines.engine import open_engine
from export import parity
from export.small import DEMO, TINY, Network, export_small


def by_numpy(network: Network, weights: dict[str, NDArray[Any]], images: NDArray[Any]) -> NDArray[Any]:
    """The network written out: 3x3 windows times filters, ReLU between, mean over the picture, classes."""
    value = images.astype(np.float64)
    for index, layer in enumerate(network.layers):
        padded = np.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, :: layer.stride, :: layer.stride]
        value = np.tensordot(windows, weights[f"conv{index}"], axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        if index < len(network.layers) - 1:
            value = np.maximum(value, 0)
    return np.asarray(value.mean(axis=(2, 3)) @ weights["classes"].T)


@pytest.mark.parametrize("network", [DEMO, TINY], ids=lambda network: network.name)
def test_the_served_graph_computes_what_numpy_does_at_every_batch_size(tmp_path: Path, network: Network) -> None:
    export_small(tmp_path, network)
    path = layout.model_folder(tmp_path, network.name) / "model.onnx"
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    engine = open_engine("onnxruntime", path)
    images = parity.seeded_images((5, 3, network.size, network.size), 3)
    wanted = by_numpy(network, weights, images)
    for batch in (1, 2, 5):
        found = engine.run({"input": images[:batch]})["output"]
        assert parity.largest_error(wanted[:batch], found) < 1e-4 * np.max(np.abs(wanted))


def test_different_images_get_different_answers(tmp_path: Path) -> None:
    export_small(tmp_path)
    engine = open_engine("onnxruntime", layout.model_folder(tmp_path, "demo") / "model.onnx")
    answers = parity.many(engine, 32, seed=4)
    assert parity.spread(answers) > 0.05
    assert len(set(parity.top1(answers))) >= 4


def test_the_card_describes_the_file_and_a_second_export_leaves_it_alone(tmp_path: Path) -> None:
    card = export_small(tmp_path)
    folder = layout.model_folder(tmp_path, "demo")
    before = (folder / "model.onnx").stat()
    assert disk.load(ModelCard, folder / "card.json") == card
    assert card.digest == disk.sha256(folder / "model.onnx")
    engine = open_engine("onnxruntime", folder / "model.onnx")
    assert [(p.name, p.shape) for p in engine.inputs] == [(t.name, (-1, *t.shape)) for t in card.inputs]
    assert [(p.name, p.shape) for p in engine.outputs] == [(t.name, (-1, *t.shape)) for t in card.outputs]
    assert export_small(tmp_path) == card
    after = (folder / "model.onnx").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    assert export_small(tmp_path / "a").digest == export_small(tmp_path / "b").digest


def test_the_demo_needs_no_torch() -> None:
    code = "import sys, export.small; print(*[m for m in ('torch', 'timm', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
