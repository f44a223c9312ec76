"""A torch module for a recipe, with weights: seeded and calibrated, pretrained through timm, or out of a file.

Reads a .safetensors file, or lets timm read its hub. Writes nothing of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brim.errors import NotReady, UsageError, did_you_mean
from export.recipes import Recipe, Weights

#: (recipe, pretrained) -> module: the seam towards timm and torchvision.
Create = Callable[[Recipe, bool], Any]

CALIBRATION_IMAGES = 8
#: Of residual branches that start at zero. At 1 a fresh ResNet-50 amplifies float rounding to 1e-4 of its outputs.
BRANCH_SCALE = 0.2


def load(recipe: Recipe, weights: Weights, create: Create | None = None) -> tuple[Any, str]:
    """The module in evaluation mode, and what the card says of its weights."""
    make = create or CREATORS[recipe.library]
    if weights.kind == "pretrained":
        return _pretrained(recipe, make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = make(recipe, False).eval()
    if weights.file is not None:
        _fill(module, weights.file)
    else:
        calibrate(module, recipe.size, recipe.seed)
    return module, weights.label(recipe)


def _timm(recipe: Recipe, pretrained: bool) -> Any:
    import timm

    if not timm.is_model(recipe.id.partition(".")[0]):
        raise UsageError(_unknown(recipe, timm.list_models()))
    if pretrained and not timm.models.is_model_pretrained(recipe.id):
        raise UsageError(f"{recipe.name}: timm has none pretrained for {recipe.id!r}; use --weights FILE")
    return timm.create_model(recipe.id, pretrained=pretrained)


def _torchvision(recipe: Recipe, pretrained: bool) -> Any:
    import torchvision

    if pretrained:
        raise UsageError(f"{recipe.name}: pretrained weights come through timm; use source timm/<id> or --weights FILE")
    if recipe.id not in torchvision.models.list_models():
        raise UsageError(_unknown(recipe, torchvision.models.list_models()))
    return torchvision.models.get_model(recipe.id, weights=None)


def _unknown(recipe: Recipe, known: Iterable[str]) -> str:
    return f"{recipe.name}: {recipe.library} knows no model {recipe.id!r}; {did_you_mean(recipe.id, known)}"


CREATORS: dict[str, Create] = {"timm": _timm, "torchvision": _torchvision}


def _pretrained(recipe: Recipe, make: Create) -> tuple[Any, str]:
    try:
        module = make(recipe, True).eval()
    except UsageError:
        raise
    except Exception as error:  # the hub's clients raise errors of their own, of many libraries
        why = " ".join(str(error).split())[:200]
        raise NotReady(
            f"{recipe.name}: pretrained weights could not be fetched ({type(error).__name__}: {why}); "
            "try where the hub answers, or give --weights FILE.safetensors"
        ) from error
    tag = module.pretrained_cfg.get("tag") or "default"
    return module, f"pretrained:{tag}"


def _fill(module: Any, path: Path) -> None:
    """Load a .safetensors file whose keys and shapes are exactly the module's."""
    import safetensors
    import safetensors.torch

    try:
        given = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"--weights {path}: not a readable .safetensors file ({error})") from error
    own = module.state_dict()
    missing, unexpected = own.keys() - given.keys(), given.keys() - own.keys()
    for what, names in (("lacks", missing), ("has the unexpected", unexpected)):
        if names:
            raise UsageError(
                f"--weights {path} {what} key {min(names)!r} ({len(names)} in all): it holds weights of another model"
            )
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            shapes = f"{list(given[name].shape)}, the model's is {list(tensor.shape)}"
            raise UsageError(f"--weights {path}: {name!r} is {shapes}: it holds weights of another model")
    module.load_state_dict(given, strict=True)


def calibrate(module: Any, size: int, seed: int) -> None:
    """Make freshly initialised weights answer different images differently, as trained ones do.

    Fresh statistics of batch normalisation (and scales of zero, which some networks start residual branches with)
    let outputs shrink towards one constant, in which a wrong row or a wrong value could not be seen. So: scales of
    zero become small, the statistics are taken from a seeded batch of uniform images, and the classifier is shifted
    and scaled to mean 0 and standard deviation 1 over that batch.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((CALIBRATION_IMAGES, 3, size, size), generator=generator)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            if norm.affine and not norm.weight.any():
                norm.weight.fill_(BRANCH_SCALE)
        _take_statistics(module, norms, images)
        answer = module(images)
        _spread_out(module, answer)


def _take_statistics(module: Any, norms: list[Any], images: Any) -> None:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain mean, not a moving one
    module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _spread_out(module: Any, answer: Any) -> None:
    heads = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == answer.shape[-1]]
    spread = float(answer.std(dim=0).mean())
    if not heads or heads[-1].bias is None or not (math.isfinite(spread) and spread > 0):
        return  # the check of the outputs, later, says whether that was good enough
    head = heads[-1]
    head.weight.div_(spread)
    head.bias.sub_(answer.mean(dim=0)).div_(spread)
