"""Variants: which (model, config) pairs are to be served, and their folders in the model repository.

Reads out/models/<name>/card.json and the configs; writes <repository>/<variant>/{config.pbtxt, variant.json, 1/…},
each folder whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brim import codec, disk, layout, machine
from brim.errors import BrimError, NoResource, UsageError, did_you_mean
from brim.records import KnownServer, ModelCard, ServingConfig, Variant
from serve import configs as serving
from serve import known, ledger

Link = Callable[[Path, Path], None]

ARTIFACT = "model.onnx"

# ---------------------------------------------------------------------------- which


def plan_variants(
    models: Sequence[str], configs: Sequence[str], *, out: Path, configs_file: Path | None, mode: serving.Mode
) -> list[Variant]:
    """Every model in every config, each once and in the order asked for.

    A model is an exported one, a known server (`sleep`, or `sleep:service_ms=20`), or a whole variant's name, which
    brings its own config. No models = all that are exported; no configs = the default one.
    """
    every = serving.read_configs(configs_file)
    chosen = [serving.choose(every, name) for name in configs] or [serving.default_config(every)]
    variants: dict[str, Variant] = {}
    for asked in models or _something_exported(out):
        name, _, config = asked.partition("__")
        model = _model(name, out)
        for each in [serving.choose(every, config)] if config else chosen:
            variant = _variant(model, each, mode)
            if variants.setdefault(variant.name, variant) != variant:
                raise UsageError(
                    f"{asked!r} would be {variant.name} a second time, with other parameters; use a config of another "
                    "name, or serve one after the other"
                )
    return list(variants.values())


def _variant(model: ModelCard | KnownServer, config: ServingConfig, mode: serving.Mode) -> Variant:
    resolved = serving.resolve(config, mode=mode, known=isinstance(model, KnownServer))
    if isinstance(model, ModelCard) and model.precision != resolved.precision:
        raise UsageError(
            f"config {config.name} asks for {resolved.precision}, but {model.name} is exported as {model.precision};"
            " choose another config, or export the model in that precision"
        )
    fitted = known.fitted(resolved, model) if isinstance(model, KnownServer) else resolved
    return Variant(model=model, config=fitted)


def _model(asked: str, out: Path) -> ModelCard | KnownServer:
    name, has_parameters, parameters = asked.partition(":")
    if name in known.KINDS:
        return known.known_server(name, _parameters(asked, parameters) if has_parameters else {})
    if has_parameters:
        raise UsageError(f"{asked!r}: only the known servers {', '.join(known.KINDS)} take parameters")
    exported = _all_exported(out)
    if name not in exported:
        raise UsageError(
            f"there is no model {name!r}; {did_you_mean(name, [*exported, *known.KINDS])} "
            f"`brim export {name}` makes one"
        )
    return disk.load(ModelCard, layout.card_file(out, name))


def _parameters(asked: str, text: str) -> Mapping[str, float]:
    """`service_ms=20,elements=4` as numbers."""
    values = {}
    for pair in text.split(","):
        key, _, value = pair.partition("=")
        try:
            values[key] = float(value)
        except ValueError:
            raise UsageError(f"{asked!r}: {pair!r} is not KEY=NUMBER, e.g. sleep:service_ms=20") from None
    return values


def _all_exported(out: Path) -> list[str]:
    return sorted(card.parent.name for card in out.glob(str(layout.card_file(Path(), "*"))))


def _something_exported(out: Path) -> list[str]:
    names = _all_exported(out)
    if not names:
        raise UsageError(f"no model is exported into {out} yet; run `brim export`, or name a known server, e.g. null")
    return names


# ---------------------------------------------------------------------------- their folders


def build(
    variant: Variant,
    *,
    out: Path,
    repository: Path,
    viewed: Collection[str],
    gpu: bool = False,
    link: Link = os.link,
) -> Path:
    """The variant's folder, written if it is not there as it should be.

    A live server reads the folders of the variants in `viewed`: to change one is refused as a resource that
    somebody else holds (exit 6), since the command itself is right and works once that server is down.
    `gpu`: its engine runs on an NVIDIA GPU; `link` is the seam of the hard link.
    """
    texts, artifact = _content(variant, out, gpu)
    folder = repository / variant.name
    disk.make_folder(repository)
    with disk.lock(
        repository / ".lock",
        f"{repository} is being written by another brim serve; try again when it is done",
    ):
        if _is_current(folder, texts, artifact):
            return folder
        if variant.name in viewed:
            raise NoResource(
                f"{variant.name} would change, but a live server serves it; `brim down` first, or choose another config"
            )
        _write(folder, texts, artifact, link)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Variants whose folders are as they should be, and why the others' are not."""

    good: tuple[Variant, ...]
    failed: Mapping[str, BrimError]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variant.name for variant in self.good)


def build_all(variants: Sequence[Variant], *, out: Path, repository: Path) -> Built:
    """Write each variant's folder; one that cannot be written does not keep the others from being served."""
    viewed, gpu = ledger.viewed(repository), machine.nvidia_driver_answers()
    good, failed = [], {}
    for variant in variants:
        try:
            build(variant, out=out, repository=repository, viewed=viewed, gpu=gpu)
            good.append(variant)
        except BrimError as error:
            failed[variant.name] = error
    return Built(good=tuple(good), failed=failed)


def load_variant(repository: Path, name: str) -> Variant:
    """The Variant whose folder is there; UsageError with a did-you-mean."""
    known_names = [file.parent.name for file in repository.glob("*/variant.json")]
    if name not in known_names:
        raise UsageError(f"there is no variant {name!r} in {repository}; {did_you_mean(name, known_names)}")
    return disk.load(Variant, repository / name / "variant.json")


def _content(variant: Variant, out: Path, gpu: bool) -> tuple[dict[str, str], Path | None]:
    """Relative path -> text of all that is small, and the exported model, checked against its card."""
    from serve import pbtxt  # half a second of gRPC, which whoever only plans or loads a variant need not pay

    texts = {
        "config.pbtxt": pbtxt.config_text(variant, gpu=gpu),
        "variant.json": codec.to_json(variant, indent=2) + "\n",
    }
    if variant.config.backend == "python":
        kind = variant.model.kind if isinstance(variant.model, KnownServer) else "engine"
        sources = {"model.py": f"{kind}.py", **{name: name for name in known.shared_modules(kind)}}
        texts |= {f"1/{name}": (known.MODELS / source).read_text(encoding="utf-8") for name, source in sources.items()}
    return texts, _artifact(variant.model, out) if isinstance(variant.model, ModelCard) else None


def _artifact(card: ModelCard, out: Path) -> Path:
    path = layout.model_folder(out, card.name) / ARTIFACT
    if not path.is_file():
        raise UsageError(f"{path} is missing, though its card is there; run `brim export {card.name}` again")
    if disk.sha256(path) != card.digest:
        raise UsageError(
            f"{path} is not what its card describes (SHA-256 differs); run `brim export {card.name}` again"
        )
    return path


def _is_current(folder: Path, texts: Mapping[str, str], artifact: Path | None) -> bool:
    expected = {*texts, *([f"1/{ARTIFACT}"] if artifact else [])}
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    if {file for file in found if "__pycache__" not in file} != expected:
        return False
    if any((folder / name).read_text(encoding="utf-8", errors="replace") != text for name, text in texts.items()):
        return False
    return artifact is None or _same_file(folder / "1" / ARTIFACT, artifact)


def _same_file(one: Path, other: Path) -> bool:
    """By inode if hard-linked, by content if copied."""
    return one.samefile(other) or disk.sha256(one) == disk.sha256(other)


def _write(folder: Path, texts: Mapping[str, str], artifact: Path | None, link: Link) -> None:
    """Write beside, then swap: a kill in between leaves no half variant, at worst none.

    What it leaves under a hidden name is swept by the next write of the same variant.
    """
    with disk.told(folder):
        for left_behind in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left_behind)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for name, text in texts.items():
                disk.save_text(fresh / name, text).chmod(0o644)
            (fresh / "1").mkdir(exist_ok=True)
            if artifact:
                place(artifact, fresh / "1" / ARTIFACT, link)
            fresh.chmod(0o755)  # a container's server is another user
            old = fresh.with_name(f"{fresh.name}.old")
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def place(source: Path, target: Path, link: Link = os.link) -> None:
    """Hard-link; copy where the two lie on different file systems, or where links are not to be had."""
    try:
        link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
