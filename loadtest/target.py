"""Who is to be loaded: a Target built from what the server itself says of the model.

Asks the server's metadata, configuration and repository index over the URL's protocol; writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from brim import guard
from brim.access import PLAIN
from brim.errors import BrimError, NotReady, UsageError, did_you_mean
from brim.records import Access, Batching, EnsembleStep, Server, Target, TargetLimit, Tensor, Variant
from loadtest.control import Control, control


def describe(
    url: str,
    model: str,
    *,
    version: str = "",
    allowed: Mapping[str, TargetLimit],
    variant: Variant | None = None,
    server: Server | None = None,
    shapes: Mapping[str, tuple[int, ...]],
    access: Access = PLAIN,
) -> Target:
    """The target as its server tells it, open dimensions filled from `shapes`.

    NotReady with the server's own reason if the model cannot be loaded; UsageError if a dimension stays open.
    """
    endpoint = guard.parse_url(url)
    guard.judge(endpoint.host, endpoint.port, allowed)
    ask = control(endpoint.url, allowed, access)
    about = ask.metadata()
    require_ready(ask, model, version)
    metadata, config = ask.model_metadata(model, version), ask.model_config(model, version)
    max_batch = int(config.get("max_batch_size", 0))
    optional = {entry["name"] for entry in config.get("input", []) if entry.get("optional")}
    required = [entry for entry in metadata["inputs"] if entry["name"] not in optional]
    inputs = filled(tensors(required, max_batch), shapes, model)
    return Target(
        url=endpoint.url,
        model=model,
        version=version,
        inputs=inputs,
        outputs=tensors(metadata["outputs"], max_batch),
        max_batch=max_batch,
        instances=instances(config),
        server_name=str(about.get("name", "")),
        server_version=str(about.get("version", "")),
        item=variant.model.item if variant else item_word(inputs),
        variant=variant,
        server=server,
        access=access,
        batching=batching(config),
        steps=tuple(ensemble_step(name, ask.model_config(name)) for name in steps(config)),
    )


def batching(config: Mapping[str, Any]) -> Batching | None:
    """What `dynamic_batching` of a configuration says; numbers of 64 bits come as text."""
    told = config.get("dynamic_batching")
    if told is None:
        return None
    queue = told.get("default_queue_policy", {})
    return Batching(
        preferred=tuple(int(size) for size in told.get("preferred_batch_size", ())),
        queue_delay_us=int(told.get("max_queue_delay_microseconds", 0)),
        max_queue_size=int(queue.get("max_queue_size", 0)),
        queue_timeout_us=int(queue.get("default_timeout_microseconds", 0)),
    )


def require_ready(ask: Control, model: str, version: str) -> None:
    """NotReady, with the server's own reason or the nearest known name, unless the model answers as ready."""
    if ask.model_ready(model, version):
        return
    index: list[dict[str, Any]] = []
    with contextlib.suppress(BrimError):  # the index may be restricted; then there is only the plain answer
        index = ask.repository_index()
    entries = [e for e in index if e.get("name") == model]
    if index and not entries:
        known = did_you_mean(model, {str(e.get("name")) for e in index})
        raise NotReady(f"{ask.endpoint.url} has no model {model!r}; {known}")
    of_version = [e for e in entries if str(e.get("version", "")) == version]
    if version and entries and not of_version:
        known = did_you_mean(version, {str(e.get("version", "")) for e in entries})
        raise NotReady(f"{ask.endpoint.url}: {model} has no version {version!r}; {known}")
    reasons = [str(e.get("reason") or e.get("state") or "") for e in (of_version or entries)]
    reason = next((" ".join(r.split()) for r in reasons if r), "the server gives no reason")
    raise NotReady(f"{ask.endpoint.url}: model {model} is not ready: {reason}; see the server's log")


def tensors(entries: Sequence[Mapping[str, Any]], max_batch: int) -> tuple[Tensor, ...]:
    """Metadata entries as Tensors, without the batch dimension that a batching model's shapes begin with."""
    return tuple(
        Tensor(
            name=str(entry["name"]),
            dtype=str(entry["datatype"]),
            shape=tuple(int(d) for d in entry["shape"][1 if max_batch > 0 else 0 :]),
        )
        for entry in entries
    )


def filled(inputs: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]], model: str) -> tuple[Tensor, ...]:
    """The inputs with every open dimension fixed by `shapes`; UsageError says the flag that is missing or wrong."""
    names = {t.name for t in inputs}
    for name in shapes:
        if name not in names:
            raise UsageError(f"--shape {name}: {model} has no such input; {did_you_mean(name, names)}")
    return tuple(_filled(t, shapes.get(t.name), model) for t in inputs)


def _filled(tensor: Tensor, shape: tuple[int, ...] | None, model: str) -> Tensor:
    told = ",".join("?" if d < 0 else str(d) for d in tensor.shape)
    if shape is None:
        if any(d < 0 for d in tensor.shape):
            raise UsageError(
                f"{model}: input {tensor.name} has open dimensions ({told}); add --shape {tensor.name}:{told} "
                f"with a number for every ?"
            )
        return tensor
    fits = len(shape) == len(tensor.shape) and all(
        s >= 1 and d in (-1, s) for s, d in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        given = ",".join(map(str, shape))
        raise UsageError(
            f"--shape {tensor.name}:{given} does not fit {model}, whose input is ({told}) without the batch dimension"
        )
    return Tensor(name=tensor.name, dtype=tensor.dtype, shape=shape)


def instances(config: Mapping[str, Any]) -> int:
    """Executions that the server can run at once: the sum over its instance groups, each counted on every GPU."""
    groups = config.get("instance_group") or [{}]
    return sum(max(1, int(g.get("count", 1))) * max(1, len(g.get("gpus") or ())) for g in groups)


def steps(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The composing models of an ensemble, in the order of its configuration; () for a plain model."""
    return tuple(str(step["model_name"]) for step in config.get("ensemble_scheduling", {}).get("step", ()))


def ensemble_step(model: str, config: Mapping[str, Any]) -> EnsembleStep:
    """A composing model by its own configuration."""
    return EnsembleStep(model=model, max_batch=int(config.get("max_batch_size", 0)), instances=instances(config))


def item_word(inputs: Sequence[Tensor]) -> str:
    """`image` only for what looks like one: a single input of three dimensions, the first or last of them 3."""
    shape = inputs[0].shape if len(inputs) == 1 else ()
    return "image" if len(shape) == 3 and 3 in (shape[0], shape[2]) else "item"
