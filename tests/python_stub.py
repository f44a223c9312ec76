"""A stand-in for what Triton's stub gives to python-backend models: its module, its environment, its arguments."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, Any]


@dataclass
class FakeTensor:
    name: str
    array: Array

    def as_numpy(self) -> Array:
        return self.array


@dataclass
class FakeResponse:
    """Like the stub's: either outputs or an error."""

    output_tensors: list[FakeTensor] | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Backend:
    """Where the models write, and what they said."""

    folder: Path
    logged: list[str] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)


@contextlib.contextmanager
def backend_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The module that only Triton's stub has, and an environment like the launcher's; models end with the block."""
    backend = Backend(folder=folder)
    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=FakeTensor,
        InferenceResponse=FakeResponse,
        TritonError=str,
        get_input_tensor_by_name=lambda request, name: request[name],
        Logger=types.SimpleNamespace(log_info=backend.logged.append),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.setenv("BRIM_SERVER_FOLDER", str(folder))
    monkeypatch.setenv("PYTHONPATH", "/some/checkout")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(np, "__version__", "1.26.4")
    yield backend
    for each in backend.made:
        each.finalize()
    for name in [name for name in sys.modules if name.startswith("serve.models")]:
        del sys.modules[name]


def model(
    backend: Backend, kind: str, told: Mapping[str, str] = MappingProxyType({}), *, instance: int = 0, warmups: int = 0
) -> Any:
    """A model as the stub makes it from the parameters of its config.pbtxt, ended with the test."""
    made = importlib.import_module(f"serve.models.{kind}").TritonPythonModel()
    parameters = {"brim.parameters": "{}", **told}
    config = {
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "model_warmup": [{"name": str(number)} for number in range(warmups)],
    }
    made.initialize(
        {
            "model_name": f"{kind}__b4",
            "model_instance_name": f"{kind}__b4_0_{instance}",
            "model_repository": "/repository/v",
            "model_version": "1",
            "model_config": json.dumps(config),
        }
    )
    backend.made.append(made)
    return made


def request(values: list[list[float]], name: str = "INPUT") -> dict[str, FakeTensor]:
    return {name: FakeTensor(name, np.array(values, dtype=np.float32))}


def answers(responses: list[FakeResponse]) -> list[dict[str, Any]]:
    return [{t.name: t.array.tolist() for t in response.output_tensors or ()} for response in responses]
