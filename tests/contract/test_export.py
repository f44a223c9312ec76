"""Export with the real torch, timm and ONNX Runtime, on a network small enough to take seconds."""

from __future__ import annotations

import importlib.metadata
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brim import disk, layout
from brim.cli import Outcome, front_door
from brim.errors import Interrupted, NoResource, NotReady, UsageError
from brim.records import ModelCard
from brim.say import Say
from engines.engine import open_engine
from export import build as building
from export import parity, weights
from export.recipes import Recipe, Weights
from export.to_onnx import write_onnx

pytestmark = pytest.mark.contract

RECIPE = Recipe(name="tiny", source="timm/test_resnet", size=64)
SEEDED = Weights(kind="seeded")
SAY = Say(quiet=True)
MODELS = '[tiny]\nsource = "timm/test_resnet"\nsize = 64\n'


def brim(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `brim export`."""
    command = [sys.executable, "-m", "brim", "export", *arguments]
    done = subprocess.run(command, cwd=layout.CHECKOUT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def build(out: Path, create: Callable[[Recipe, bool], Any] | None = None, given: Weights = SEEDED) -> ModelCard:
    card, _ = building.build(RECIPE, given, digest="d", out=out, say=SAY, create=create)
    return card


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An out/ with one model, exported from a file that also names one that does not exist."""
    out = tmp_path_factory.mktemp("out")
    (out / "models.toml").write_text('[bad]\nsource = "timm/test_resnt"\nsize = 64\n' + MODELS)
    answer, heard = io.StringIO(), io.StringIO()
    arguments = ["export", "--models", str(out / "models.toml"), "--out", str(out), "--json"]
    with redirect_stdout(answer), redirect_stderr(heard), pytest.raises(Outcome) as ended:
        front_door.main(arguments, standalone_mode=False)  # in this process: another would load torch for seconds
    assert (ended.value.code, ended.value.word) == (2, "usage")
    models = json.loads(answer.getvalue())["models"]
    assert [(m["card"]["name"], m["status"]) for m in models] == [("tiny", "exported")]
    assert "bad: timm knows no model 'test_resnt'; did you mean 'test_resnet'?" in heard.getvalue()
    return out


def test_one_broken_model_among_good_ones_is_named_and_the_good_one_is_exported(exported: Path) -> None:
    assert [path.name for path in (exported / "models").iterdir() if path.is_dir()] == ["tiny"]


def test_the_card_says_what_the_file_is(exported: Path) -> None:
    folder = layout.model_folder(exported, "tiny")
    card = disk.load(ModelCard, folder / "card.json")
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.onnx"]
    assert card.parity is not None and card.parity.held and card.parity.batches == (1, 2, 5)
    assert (card.item, card.precision, card.weights) == ("image", "fp32", "seeded:0")
    assert [(t.name, t.dtype, t.shape) for t in card.inputs] == [("input", "FP32", (3, 64, 64))]
    assert [(t.name, t.dtype, t.shape) for t in card.outputs] == [("output", "FP32", (1000,))]
    assert card.digest == disk.sha256(folder / "model.onnx")
    assert card.software["torch"] == importlib.metadata.version("torch")


def test_the_file_computes_what_the_recipes_weights_do_at_every_batch_size(exported: Path) -> None:
    module, _ = weights.load(RECIPE, SEEDED)
    images = parity.seeded_images((5, 3, 64, 64), 77)
    engine = open_engine("onnxruntime", layout.model_folder(exported, "tiny") / "model.onnx")
    with torch.inference_mode():
        wanted = module(torch.from_numpy(images)).numpy()
    for batch in (1, 2, 5):
        found = engine.run({"input": images[:batch]})["output"]
        assert np.max(np.abs(found - wanted[:batch])) <= 1e-4 * np.max(np.abs(wanted))


def test_an_unchanged_model_is_not_exported_again(exported: Path) -> None:
    artifact = layout.model_folder(exported, "tiny") / "model.onnx"
    before = artifact.stat()
    code, answer, _ = brim("tiny", "--models", str(exported / "models.toml"), "--out", str(exported), "--json")
    assert (code, [m["status"] for m in json.loads(answer)["models"]]) == (0, ["unchanged"])
    after = artifact.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_file_holds_no_path_of_this_machine(exported: Path) -> None:
    content = (layout.model_folder(exported, "tiny") / "model.onnx").read_bytes()
    assert b"site-packages" not in content and str(layout.CHECKOUT).encode() not in content


def test_torchvision_is_a_source_too_and_its_unknown_models_are_named() -> None:
    recipe = Recipe(name="tv", source="torchvision/squeezenet1_1", size=64)
    module, label = weights.load(recipe, SEEDED)
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000) and label == "seeded:0"
    with pytest.raises(UsageError, match="torchvision knows no model 'resnt18'; did you mean 'resnet18'"):
        weights.load(Recipe(name="tv", source="torchvision/resnt18", size=64), SEEDED)


def answers_of(recipe: Recipe) -> Any:
    module, _ = weights.load(recipe, SEEDED)
    images = torch.from_numpy(parity.seeded_images((64, 3, recipe.size, recipe.size), 9))
    with torch.inference_mode():
        return module(images).numpy()


def test_seeded_weights_tell_images_apart_where_fresh_ones_would_not() -> None:
    recipe = Recipe(name="r18", source="timm/resnet18", size=64)
    found = answers_of(recipe)
    assert len(set(parity.top1(found))) >= 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = weights.CREATORS["timm"](recipe, False).eval()
    images = torch.from_numpy(parity.seeded_images((64, 3, 64, 64), 9))
    with torch.inference_mode():
        uncalibrated = fresh(images).numpy()
    assert len(set(parity.top1(uncalibrated))) < len(set(parity.top1(found)))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def state(seed: int) -> bytes:
        recipe = Recipe(name="tiny", source="timm/test_resnet", size=64, seed=seed)
        module, _ = weights.load(recipe, SEEDED)
        return b"".join(t.numpy().tobytes() for t in module.state_dict().values())

    assert state(0) == state(0)
    assert state(0) != state(1)


class Drifts(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """A network that computes something else while it is exported, as a broken exporter would."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = torch.nn.Flatten()
        self.head = torch.nn.Linear(3 * 64 * 64, 10)

    def forward(self, images: Any) -> Any:
        answer = self.head(self.flatten(images))
        return answer * 1.01 if torch.compiler.is_exporting() else answer


def test_a_model_that_differs_from_torch_is_refused_and_the_previous_one_stays(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    folder = layout.model_folder(tmp_path, "tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"tiny: .* differs from torch: error \d\.\d\de-0\d \(bound 1e-04\)"):
        build(tmp_path, create=lambda recipe, pretrained: Drifts())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == ["tiny"]


def test_a_network_that_answers_all_images_alike_is_refused(tmp_path: Path) -> None:
    class Constant(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def forward(self, images: Any) -> Any:
            return images.mean(dim=(2, 3)) * 1e-9 + torch.arange(3.0)

    with pytest.raises(UsageError, match="hardly depend on the image"):
        build(tmp_path, create=lambda recipe, pretrained: Constant())
    assert not list((tmp_path / "models").iterdir())


def test_a_signal_in_the_middle_of_an_export_leaves_nothing(tmp_path: Path) -> None:
    def stopped(recipe: Recipe, pretrained: bool) -> Any:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        build(tmp_path, create=stopped)
    assert not list((tmp_path / "models").iterdir())


def test_ctrl_c_once_and_twice_leaves_the_model_that_stood_there_and_the_next_export_works(
    exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "models.toml").write_text(MODELS + "seed = 1\n")
    children, kept = [], disk.sha256(layout.card_file(exported, "tiny"))
    for times in (1, 2):  # side by side: each loads torch for seconds
        out = tmp_path / str(times)
        shutil.copytree(exported / "models", out / "models")
        command = [sys.executable, "-m", "brim", "export", "--models", str(tmp_path / "models.toml"), "--out", str(out)]
        children.append((times, out, subprocess.Popen(command, cwd=layout.CHECKOUT, stderr=subprocess.PIPE, text=True)))
    for times, out, child in children:
        deadline = time.monotonic() + 60
        while not list((out / "models").glob(".tiny.new.*")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(times):
            child.send_signal(signal.SIGINT)
    for times, out, child in children:
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 130 and "Traceback" not in errors
        assert disk.sha256(layout.card_file(out, "tiny")) == kept
        assert [path.name for path in (out / "models").iterdir() if not path.name.startswith(".")] == ["tiny"]
        if times == 1:
            assert errors.splitlines()[-1] == "brim: exit 130 (aborted)"
            assert not list((out / "models").glob(".tiny.*")), "nothing half made is left"
    build(tmp_path / "2")
    assert disk.sha256(layout.card_file(tmp_path / "2", "tiny")) != kept
    assert not list((tmp_path / "2" / "models").glob(".tiny.*")), "what the second signal left is gone"


def test_a_full_disk_is_told_and_the_previous_model_stays(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported / "models", tmp_path / "models")
    (tmp_path / "models.toml").write_text(MODELS + "seed = 1\n")
    folder = layout.model_folder(tmp_path, "tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments = ["export", "--models", str(tmp_path / "models.toml"), "--out", str(tmp_path)]
    own = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, own[1]))
    try:
        with pytest.raises(NoResource, match=r"model\.onnx.*: no room left .*; free some, or point --out elsewhere"):
            front_door.main(arguments, standalone_mode=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, own)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == ["tiny"]


def test_a_network_that_torch_cannot_export_is_one_line(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def forward(self, images: Any) -> Any:
            return images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))

    with pytest.raises(UsageError, match="tiny: torch cannot export it") as caught:
        write_onnx(Branches(), RECIPE, tmp_path / "model.onnx", SAY)
    assert "\n" not in str(caught.value) and not (tmp_path / "model.onnx").exists()


def test_weights_come_out_of_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other, _ = weights.load(Recipe(name="tiny", source="timm/test_resnet", size=64, seed=5), SEEDED)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    given = Weights(kind="file", file=tmp_path / "w.safetensors", digest="abc")
    module, label = weights.load(RECIPE, given)
    assert label == "file:abc"
    images = torch.from_numpy(parity.seeded_images((2, 3, 64, 64), 2))
    with torch.inference_mode():
        assert torch.equal(module(images), other(images))


def test_a_safetensors_file_of_another_model_is_refused_by_its_first_wrong_key(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module, _ = weights.load(RECIPE, SEEDED)
    state = dict(module.state_dict())
    path = tmp_path / "w.safetensors"
    given = Weights(kind="file", file=path, digest="abc")
    for change, told in (
        ({"fc.weight": None}, r"lacks key 'fc\.weight'"),
        ({"extra": torch.zeros(1)}, "has the unexpected key 'extra'"),
        ({"fc.weight": torch.zeros(1)}, r"'fc\.weight' is \[1\], the model's is \["),
    ):
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        save_file(changed, path)
        with pytest.raises(UsageError, match=told):
            weights.load(RECIPE, given)
    path.write_bytes(b"no header")
    with pytest.raises(UsageError, match=r"w\.safetensors: not a readable"):
        weights.load(RECIPE, given)


def test_pretrained_weights_come_through_the_hub_and_the_card_names_their_tag() -> None:
    asked: list[tuple[str, bool]] = []

    def hub(recipe: Recipe, pretrained: bool) -> Any:
        asked.append((recipe.id, pretrained))
        module, _ = weights.load(recipe, SEEDED)
        module.pretrained_cfg = {"tag": "r160_in1k"}
        return module

    _, label = weights.load(RECIPE, Weights(kind="pretrained"), hub)
    assert asked == [("test_resnet", True)]
    assert label == "pretrained:r160_in1k"


def test_a_hub_that_does_not_answer_is_one_line_with_a_next_step(tmp_path: Path) -> None:
    def offline(recipe: Recipe, pretrained: bool) -> Any:
        raise OSError("name resolution\nfailed")

    with pytest.raises(NotReady, match="could not be fetched .*name resolution failed.*--weights FILE") as caught:
        build(tmp_path, create=offline, given=Weights(kind="pretrained"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "models").iterdir())


def test_pretrained_weights_are_refused_where_there_are_none() -> None:
    pretrained = Weights(kind="pretrained")
    with pytest.raises(UsageError, match="x: timm has none pretrained for 'dpn48b'; use --weights FILE"):
        weights.load(Recipe(name="x", source="timm/dpn48b", size=64), pretrained)
    with pytest.raises(UsageError, match="x: timm knows no model 'resnet18x'; did you mean 'resnet18'"):
        weights.load(Recipe(name="x", source="timm/resnet18x", size=64), pretrained)
    with pytest.raises(UsageError, match="come through timm"):
        weights.load(Recipe(name="x", source="torchvision/resnet18", size=64), pretrained)
