"""What every engine can do, and `open_engine`, which opens a model file with the runtime that a config names.

Reads the model file. Imports a runtime only when its engine is opened, so that importing this stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brim.errors import UsageError, did_you_mean

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output; `shape` has the batch dimension first, -1 = any."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Engine(Protocol):
    """A model ready to run in this process."""

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def outputs(self) -> tuple[Port, ...]: ...

    @property
    def provider(self) -> str:
        """What really runs it, in the runtime's own word (CPUExecutionProvider, torch cpu, ...)."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One batch: arrays by input name to arrays by output name."""
        ...

    def close(self) -> None: ...


def _onnxruntime(path: Path, *, threads: int, device: str, options: Mapping[str, str]) -> Engine:
    from engines.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, threads=threads, device=device, options=options)


#: ServingConfig.engine -> how a file is opened with it.
OPENERS: dict[str, Callable[..., Engine]] = {"onnxruntime": _onnxruntime}


def open_engine(
    kind: str,
    path: Path | str,
    *,
    threads: int = 1,
    device: str = "cpu",
    options: Mapping[str, str] | None = None,
) -> Engine:
    """The model in `path`, ready to run on `device` (cpu, cuda or cuda:<n>) with `threads` threads."""
    if kind not in OPENERS:
        raise UsageError(f"engine {kind!r} opens no model file; {did_you_mean(kind, OPENERS)}")
    return OPENERS[kind](Path(path), threads=threads, device=device, options=options or {})
