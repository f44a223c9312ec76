"""Decides what a `brim serve` has to do with the server that is up already: pure.

Reads, writes: nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from urllib.parse import urlsplit

from brim.records import ELEMENT_BYTES, Server, Tensor, Variant
from serve.ports import Ports
from serve.readiness import VariantState

_BYTES_OF_STRINGS = 8  # which have no size of their own
#: What a stub takes for itself before any tensor: Triton's default region.
_STUB_BYTES = 1 << 20


def why_new(
    old: Server,
    *,
    mode: str,
    wanted: Collection[str],
    changed: Collection[str],
    ports: Ports,
    states: Sequence[VariantState] | None,
    replace: bool,
) -> str | None:
    """Why the server that is up must make way for a new one; None if it serves exactly what is wanted.

    `changed` are variants whose folders would have to be rewritten; `states` is None if it does not answer as ours.
    """
    if replace:
        return "--replace"
    if old.mode != mode:
        return f"it is {old.mode}, {mode} was asked for"
    if states is None:
        return "it does not answer by its own name"
    if changed:
        return f"{', '.join(sorted(changed))} changed"
    if set(old.variants) != set(wanted):
        return f"it serves {', '.join(old.variants)}"
    broken = next((state.name for state in states if not state.ready), None)
    if broken is not None:
        return f"{broken} is not ready there"
    urls = ((ports.http, old.http), (ports.grpc, old.grpc), (ports.metrics, old.metrics))
    moved = next((port for port, url in urls if port is not None and urlsplit(url or "").port != port), None)
    return f"port {moved} was asked for" if moved is not None else None


def besides(ports: Ports, old: Server | None) -> Ports:
    """The ports asked for, less those that the server which makes way holds itself."""
    urls = (old.http, old.grpc, old.metrics) if old is not None else ()
    held = {urlsplit(url).port for url in urls if url is not None}
    kept = {kind: getattr(ports, kind) for kind in ("http", "grpc", "metrics")}
    return Ports(**{kind: port for kind, port in kept.items() if port not in held})


def shared_memory_bytes(variants: Sequence[Variant]) -> int:
    """What the python backend's stubs will need in /dev/shm: inputs and outputs of a full batch, twice, per instance.

    Twice, because the next batch is being copied in while one executes.
    """
    return sum(
        variant.config.instances * (_STUB_BYTES + 2 * variant.config.max_batch * _item_bytes(variant))
        for variant in variants
        if variant.config.backend == "python"
    )


def _item_bytes(variant: Variant) -> int:
    return sum(map(_tensor_bytes, (*variant.model.inputs, *variant.model.outputs)))


def _tensor_bytes(tensor: Tensor) -> int:
    return prod(max(1, extent) for extent in tensor.shape) * ELEMENT_BYTES.get(tensor.dtype, _BYTES_OF_STRINGS)
