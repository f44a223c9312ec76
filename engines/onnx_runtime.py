"""ONNX Runtime as an engine: on the provider that was asked for, or not at all.

Reads one ONNX file. ONNX Runtime falls back to the CPU with no more than a log line when CUDA cannot be
loaded; here that is an error. Its threads do not spin while they wait: client and server may share the cores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from brim.errors import BrimError, NoResource, NotReady, UsageError
from engines.engine import Arrays, Port

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

#: ONNX Runtime's word for an element type -> numpy's.
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}

#: In an error: number and name of its code, and file, line and C++ signature of where it was raised.
SOURCE_PLACE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/\S*onnxruntime\S*:\d+ .*?\) (?=[A-Z])")


class OnnxRuntimeEngine:
    """One InferenceSession with a fixed number of threads on one provider."""

    def __init__(self, path: Path, *, threads: int, device: str, options: Mapping[str, str]) -> None:
        self._session = _session(path, threads=threads, device=device, options=options)
        self.provider = require_provider(PROVIDERS[device.partition(":")[0]], self._session.get_providers())
        self.inputs = tuple(_port(path, node) for node in self._session.get_inputs())
        self.outputs = tuple(_port(path, node) for node in self._session.get_outputs())
        self._names = [port.name for port in self.outputs]
        self._path = path

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise _run_error(self._path, error) from error

    def close(self) -> None:
        """Give the session's memory back; the engine cannot run afterwards."""
        del self._session


def require_provider(wanted: str, used: list[str]) -> str:
    """The provider that runs the graph; NotReady if it is not the one that was asked for."""
    if used and used[0] == wanted:
        return wanted
    raise NotReady(
        f"ONNX Runtime runs on {used[0] if used else 'nothing'}, not on {wanted} as asked: "
        "its libraries or the driver do not load; `brim doctor` says what is there"
    )


def _session(path: Path, *, threads: int, device: str, options: Mapping[str, str]) -> Any:
    kind, _, index = device.partition(":")
    if kind not in PROVIDERS or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(f"device {device!r} is unknown to onnxruntime; use cpu, cuda or cuda:<n>")
    _require_file(path)
    session_options, provider_options = _split(options)
    if kind == "cpu" and provider_options:
        raise UsageError(
            f"engine option {next(iter(provider_options))!r} means nothing to onnxruntime on a cpu; "
            "use keys that start with 'session.' or remove it"
        )
    if kind == "cuda":
        provider_options = {"device_id": index or "0", **provider_options}
        _require_cuda_build()
    try:
        return onnxruntime.InferenceSession(
            str(path),
            sess_options=_options(threads, session_options),
            providers=[(PROVIDERS[kind], provider_options)],
        )
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise UsageError(f"{path}: ONNX Runtime cannot load it ({_line(error)}); export it again") from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is not a file; export the model first")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty; export the model again")


def _require_cuda_build() -> None:
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise UsageError(
            f"this onnxruntime {onnxruntime.__version__} was built without CUDA; "
            "use device cpu, or install onnxruntime-gpu instead of onnxruntime"
        )
    onnxruntime.preload_dlls()  # CUDA and cuDNN out of installed wheels, where the loader would not look


def _split(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Engine options into those of the session (dotted keys) and those of the provider."""
    session = {key: value for key, value in options.items() if "." in key}
    return session, {key: value for key, value in options.items() if key not in session}


def _options(threads: int, entries: Mapping[str, str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    for key, value in {"session.intra_op.allow_spinning": "0", **entries}.items():
        options.add_session_config_entry(key, value)
    return options


def _port(path: Path, node: Any) -> Port:
    if node.type not in DTYPES:
        raise UsageError(f"{path}: {node.name!r} is a {node.type}, not an array type; export it in another")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Port(name=node.name, dtype=np.dtype(DTYPES[node.type]), shape=shape)


def _run_error(path: Path, error: Exception) -> BrimError:
    text = _line(error)
    if "Failed to allocate memory" in text or "out of memory" in text:
        return NoResource(f"{path}: out of memory in ONNX Runtime ({text}); use a smaller batch")
    return UsageError(f"{path}: ONNX Runtime refuses the batch ({text}); compare it with the model's inputs")


def _line(error: Exception) -> str:
    """An error's text on one line of bearable length, without the places in the runtime's source."""
    text = SOURCE_PLACE.sub("", " ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:300]}…"
