"""One output of an answer against the output that the model promised. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brim.records import Tensor
from loadtest.prepared import tensor_bytes


def unlike(promised: Mapping[str, Tensor], name: str, dtype: str, shape: Sequence[int], byte_size: int) -> str:
    """How an output differs from its promise, or "" if it does not."""
    promise = promised.get(name)
    if promise is None:
        return f"output {name} was not asked for"
    if dtype != promise.dtype:
        return f"output {name} is {dtype}, not {promise.dtype}"
    fits = len(shape) == len(promise.shape) and all(
        isinstance(s, int) and s >= 0 and p in (-1, s) for s, p in zip(shape, promise.shape, strict=True)
    )
    if not fits:
        return f"output {name} has shape {list(shape)}, not {list(promise.shape)}"
    needed = tensor_bytes(dtype, tuple(shape))
    if needed is not None and needed != byte_size:
        return f"output {name} has {byte_size} bytes, its shape needs {needed}"
    return ""
