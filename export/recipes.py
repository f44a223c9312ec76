"""Recipes: what models.toml says of each model, and the digest of all that decides an exported file.

Reads models.toml and the weights file's bytes, writes nothing; imports neither torch nor onnx, so that an
unchanged model is recognised at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brim import codec, disk
from brim.errors import InvalidRecord, UsageError, did_you_mean
from brim.records import check_name

ROOM = Path(__file__).resolve().parent
DEFAULT_FILE = ROOM / "models.toml"
SOURCES = ("timm", "torchvision")
OPSETS = range(18, 24)
#: Packages whose version can change the exported bytes.
DECIDING_PACKAGES = ("onnx", "onnxscript", "timm", "torch", "torchvision")
#: The code that can.
DECIDING_CODE = ("to_onnx.py", "weights.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One table of models.toml."""

    name: str
    source: str  # timm/<id> or torchvision/<id>
    size: int  # pixels, height = width
    seed: int = 0
    opset: int = 18
    default: bool = True

    def __post_init__(self) -> None:
        check_name(self.name, "model")
        library, slash, model = self.source.partition("/")
        if library not in SOURCES or not slash or not model:
            raise InvalidRecord(
                f"source {self.source!r} is not <library>/<id> with one of {', '.join(SOURCES)}; "
                f"{did_you_mean(library, SOURCES)}"
            )
        if not 8 <= self.size <= 4096:
            raise InvalidRecord(f"size is {self.size} pixels, must be 8 to 4096")
        if self.seed < 0:
            raise InvalidRecord(f"seed is {self.seed}, must be >= 0")
        if self.opset not in OPSETS:
            raise InvalidRecord(f"opset is {self.opset}, must be {OPSETS[0]} to {OPSETS[-1]}")

    @property
    def library(self) -> str:
        return self.source.partition("/")[0]

    @property
    def id(self) -> str:
        return self.source.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where the weights come from: a seed, the hub, or a file."""

    kind: str  # seeded, pretrained, file
    file: Path | None = None
    digest: str = ""  # of the file

    def label(self, recipe: Recipe) -> str:
        """As the recipe counts them; the card names a pretrained tag in full."""
        return {
            "seeded": f"seeded:{recipe.seed}",
            "pretrained": "pretrained",
            "file": f"file:{self.digest}",
        }[self.kind]


def read_models(path: Path) -> dict[str, Recipe]:
    """Every recipe in a models.toml, by name; a UsageError names file, table and key."""
    tables = codec.read_toml(path, "--models")
    if not tables:
        raise UsageError(f"{path} names no model; add a table such as [resnet50] with source and size")
    return {name: _recipe(path, name, table) for name, table in tables.items()}


def _recipe(path: Path, name: str, table: object) -> Recipe:
    where = f"{path}: [{name}]"
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name!r} stands outside a table; write it under [<model>]")
    if "name" in table:
        raise UsageError(f"{where}: unknown key 'name'; the table's own name is the model's")
    return codec.build(Recipe, {"name": name, **table}, where=where)


def choose(recipes: Mapping[str, Recipe], names: Sequence[str]) -> list[Recipe]:
    """The recipes of `names`, each once, or the default ones if no name is given."""
    for name in names:
        if name not in recipes:
            raise UsageError(f"there is no model {name!r}; {did_you_mean(name, recipes)}")
    if names:
        return [recipes[name] for name in dict.fromkeys(names)]
    chosen = [recipe for recipe in recipes.values() if recipe.default]
    if not chosen:
        raise UsageError(f"no model is a default; name one: {', '.join(recipes)}")
    return chosen


def read_weights(asked: str | None, models: int) -> Weights:
    """What --weights means; a file is for exactly one model and is only ever read as safetensors."""
    if asked is None:
        return Weights(kind="seeded")
    if asked == "pretrained":
        return Weights(kind="pretrained")
    path = Path(asked)
    if path.suffix != ".safetensors":
        raise UsageError(
            f"--weights {asked!r} is neither 'pretrained' nor a .safetensors file; "
            "other formats can run code when read: convert with safetensors.torch.save_file"
        )
    if not path.is_file():
        raise UsageError(f"--weights {asked}: there is no such file; give the path of a .safetensors file")
    if models != 1:
        raise UsageError(f"--weights {asked} holds one model's weights, but {models} models are meant; name one")
    return Weights(kind="file", file=path, digest=disk.sha256(path))


def recipe_digest(recipe: Recipe, weights: Weights, *, versions: Mapping[str, str], code: str) -> str:
    """SHA-256 of everything that decides the exported file: equal digests need no second export."""
    decides = {
        "source": recipe.source,
        "size": recipe.size,
        "opset": recipe.opset,
        "weights": weights.label(recipe),
        "versions": {name: versions[name] for name in sorted(versions)},
        "code": code,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def deciding_versions() -> dict[str, str]:
    """Installed versions of the packages that can change the file; without them nothing can be exported."""
    try:
        return {name: importlib.metadata.version(name) for name in DECIDING_PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(f"export needs {error.name}, which is not installed; run `make export`") from error


def deciding_code() -> str:
    """SHA-256 of the modules that can change the file."""
    return hashlib.sha256(b"".join((ROOM / name).read_bytes() for name in DECIDING_CODE)).hexdigest()
