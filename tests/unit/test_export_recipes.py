"""models.toml and the command line of `brim export`: strict, with a next step; and the digest that saves an export."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from brim.errors import UsageError
from brim.layout import CHECKOUT
from export import recipes
from export.recipes import Recipe, Weights, choose, read_models, read_weights, recipe_digest

GOOD = '[net]\nsource = "timm/resnet18"\nsize = 64\n'
RECIPE = Recipe(name="net", source="timm/resnet18", size=64)
SEEDED = Weights(kind="seeded")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_default_models_are_the_three_of_the_article() -> None:
    chosen = choose(read_models(recipes.DEFAULT_FILE), [])
    assert [(r.name, r.size) for r in chosen] == [
        ("resnet50", 224),
        ("efficientnet_b3_300", 300),
        ("efficientnet_b3_224", 224),
    ]
    assert chosen[1].source == chosen[2].source


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("size", "siz"), r"mine\.toml: \[net\]: unknown key 'siz'; did you mean 'size'\?"),
        (GOOD + 'name = "other"\n', "unknown key 'name'"),
        ('[net]\nsource = "timm/resnet18"\n', r"\[net\]: key 'size' is missing"),
        (GOOD.replace("64", '"64"'), "size: expected a whole number, found '64'"),
        (GOOD.replace("64", "-1"), "size is -1 pixels, must be 8 to 4096"),
        (GOOD.replace("timm/", "tim/"), "did you mean 'timm'"),
        (GOOD.replace("timm/", ""), "is not <library>/<id>"),
        (GOOD + "opset = 9\n", "opset is 9, must be 18 to 23"),
        (GOOD + "seed = -1\n", "seed is -1"),
        (GOOD.replace("[net]", "[a__b]"), "model 'a__b'"),
        ("size = 3\n", "'size' stands outside a table"),
        ("[net\n", "not TOML"),
        ("", "names no model"),
    ],
)
def test_a_wrong_models_file_is_refused_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        read_models(write(tmp_path, text))
    assert "mine.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_models_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent.toml does not exist"):
        read_models(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_models(tmp_path)


def test_names_choose_models_once_each_and_an_unknown_one_gets_a_did_you_mean(tmp_path: Path) -> None:
    known = read_models(write(tmp_path, GOOD + GOOD.replace("[net]", "[spare]") + "default = false\n"))
    assert [r.name for r in choose(known, [])] == ["net"]
    assert [r.name for r in choose(known, ["spare", "net", "spare"])] == ["spare", "net"]
    with pytest.raises(UsageError, match="there is no model 'nett'; did you mean 'net'"):
        choose(known, ["nett"])
    with pytest.raises(UsageError, match="no model is a default; name one: spare"):
        choose({"spare": known["spare"]}, [])


def test_weights_are_a_seed_the_hub_or_one_safetensors_file(tmp_path: Path) -> None:
    assert read_weights(None, 3).label(RECIPE) == "seeded:0"
    assert read_weights("pretrained", 3).label(RECIPE) == "pretrained"
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"abc")
    sha256_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert read_weights(str(file), 1).label(RECIPE) == f"file:{sha256_of_abc}"
    with pytest.raises(UsageError, match="3 models are meant; name one"):
        read_weights(str(file), 3)
    for asked, told in (("w.pt", "can run code"), ("pretraind", "pretraind"), ("no.safetensors", "no such file")):
        with pytest.raises(UsageError, match=told):
            read_weights(asked, 1)


def test_the_digest_is_stable_and_follows_all_that_decides_the_file_and_nothing_else() -> None:
    versions = {"torch": "2", "timm": "1"}
    digest = recipe_digest(RECIPE, SEEDED, versions=versions, code="c")
    same = dataclasses.replace(RECIPE, name="other", default=False)
    assert recipe_digest(same, SEEDED, versions=dict(reversed(versions.items())), code="c") == digest
    others = [
        recipe_digest(dataclasses.replace(RECIPE, **change), SEEDED, versions=versions, code="c")
        for change in ({"source": "timm/resnet34"}, {"size": 65}, {"seed": 1}, {"opset": 19})
    ]
    others.append(recipe_digest(RECIPE, Weights(kind="pretrained"), versions=versions, code="c"))
    others.append(recipe_digest(RECIPE, Weights(kind="file", digest="1"), versions=versions, code="c"))
    others.append(recipe_digest(RECIPE, Weights(kind="file", digest="2"), versions=versions, code="c"))
    others.append(recipe_digest(RECIPE, SEEDED, versions={**versions, "torch": "3"}, code="c"))
    others.append(recipe_digest(RECIPE, SEEDED, versions=versions, code="d"))
    assert len({digest, *others}) == 1 + len(others)


def test_the_seed_does_not_decide_a_file_whose_weights_are_given() -> None:
    given = Weights(kind="file", digest="1")
    reseeded = dataclasses.replace(RECIPE, seed=7)
    assert recipe_digest(RECIPE, given, versions={}, code="") == recipe_digest(reseeded, given, versions={}, code="")


def test_a_wrong_model_on_the_command_line_ends_with_exit_2_and_two_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "brim", "export", "resnet5", "--out", str(tmp_path)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "brim: there is no model 'resnet5'; did you mean 'resnet50'?",
        "brim: exit 2 (usage)",
    ]
    assert not list(tmp_path.iterdir())


def test_the_help_of_export_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, export.cli; print(*[m for m in ('numpy', 'torch', 'onnx', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
