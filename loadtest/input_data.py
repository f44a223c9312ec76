"""The user's own data: perf_analyzer's JSON, a folder of .npy files, or a folder of raw files for one BYTES input.

Reads them and checks names, dtypes and shapes against the target; every item comes without the batch dimension.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brim.errors import UsageError, did_you_mean
from brim.records import Target, Tensor
from loadtest import request_bytes

Item = dict[str, np.ndarray]


def load(source: Path, target: Target) -> list[Item]:
    """The items in `source`, one array per input each; UsageError names the file and what does not fit."""
    if source.is_dir():
        items = _folder(source, target)
    elif source.is_file():
        items = _json(source, target)
    else:
        raise UsageError(f"--input-data {source}: no such file or folder; give a .json file or a folder")
    if not items:
        raise UsageError(f"--input-data {source}: holds no data for {target.model}; give at least one item")
    return items


def _json(source: Path, target: Target) -> list[Item]:
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--input-data {source}: not JSON ({error}); see perf_analyzer's input data format") from None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise UsageError(f'--input-data {source}: has no list "data"; write {{"data": [{{"<input>": [...]}}]}}')
    return [_entry(entry, target, f"--input-data {source}: data[{i}]") for i, entry in enumerate(data)]


def _entry(entry: Any, target: Target, where: str) -> Item:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: expected an object with a value per input (sequences of requests are not sent)")
    names = {t.name for t in target.inputs}
    for name in entry:
        if name not in names:
            raise UsageError(f"{where}: {target.model} has no input {name!r}; {did_you_mean(name, names)}")
    missing = sorted(names - entry.keys())
    if missing:
        raise UsageError(f"{where}: input {missing[0]!r} is missing; add it")
    return {t.name: _value(entry[t.name], t, f"{where}.{t.name}") for t in target.inputs}


def _value(value: Any, tensor: Tensor, where: str) -> np.ndarray:
    shape: Sequence[int] = tensor.shape
    if isinstance(value, dict) and "content" in value:
        shape = value.get("shape", shape)
        value = value["content"]
    if isinstance(value, dict):
        return _from_b64(value, tensor, where)
    if not isinstance(value, list):
        raise UsageError(f'{where}: expected a list, {{"content": …}} or {{"b64": …}}, found {value!r}')
    if list(shape) != list(tensor.shape):
        raise UsageError(f"{where}: shape {list(shape)}, but the model takes {list(tensor.shape)}; correct it")
    flat = list(_flattened(value))
    return _reshaped(_elements(flat, tensor, where), tensor, where)


def _flattened(value: Any) -> Any:
    if isinstance(value, list):
        for v in value:
            yield from _flattened(v)
    else:
        yield value


def _elements(flat: Sequence[Any], tensor: Tensor, where: str) -> np.ndarray:
    kind = request_bytes.numpy_dtype(tensor.dtype, where)
    if tensor.dtype == "BYTES":
        array = np.empty(len(flat), object)
        array[:] = [v.encode() if isinstance(v, str) else _refuse_element(v, tensor, where) for v in flat]
        return array
    if any(isinstance(v, (str, type(None))) for v in flat):
        _refuse_element(next(v for v in flat if isinstance(v, (str, type(None)))), tensor, where)
    if tensor.dtype == "BF16":
        return (np.array(flat, np.float32).view(np.uint32) >> 16).astype(kind)
    try:
        array = np.array(flat, np.float64 if kind.kind == "f" else None).astype(kind)
    except (OverflowError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: not {tensor.dtype} ({error}); correct the values") from None
    if kind.kind in "iub" and not np.array_equal(array, np.array(flat)):
        raise UsageError(f"{where}: a value does not fit {tensor.dtype}; correct it")
    return array


def _refuse_element(value: Any, tensor: Tensor, where: str) -> bytes:
    raise UsageError(f"{where}: {value!r} is not a {tensor.dtype} value; correct it")


def _from_b64(value: Mapping[str, Any], tensor: Tensor, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(value["b64"], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise UsageError(f'{where}: expected {{"b64": "<base64>"}}; correct it') from None
    if tensor.dtype == "BYTES":  # perf_analyzer's meaning: the bytes of one element
        array = np.empty(1, object)
        array[0] = data
    else:
        kind = request_bytes.numpy_dtype(tensor.dtype, where)
        if len(data) % kind.itemsize:
            raise UsageError(f"{where}: {len(data)} bytes are no whole number of {tensor.dtype}; correct them")
        array = np.frombuffer(data, kind)
    return _reshaped(array, tensor, where)


def _reshaped(array: np.ndarray, tensor: Tensor, where: str) -> np.ndarray:
    needed = int(np.prod(tensor.shape, dtype=np.int64))
    if array.size != needed:
        raise UsageError(f"{where}: {array.size} values, but shape {list(tensor.shape)} needs {needed}; correct them")
    return array.reshape(tensor.shape)


def _folder(source: Path, target: Target) -> list[Item]:
    if not any(source.rglob("*.npy")):
        return _raw_files(source, target)
    columns = {t.name: _npy_items(source, t, alone=len(target.inputs) == 1) for t in target.inputs}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise UsageError(f"--input-data {source}: inputs differ in their number of items ({told}); make them equal")
    return [{name: column[i] for name, column in columns.items()} for i in range(next(iter(counts.values()), 0))]


def _npy_items(source: Path, tensor: Tensor, *, alone: bool) -> list[np.ndarray]:
    """Items of one input: <input>*.npy, or <input>/*.npy, or with a single input any .npy."""
    files = [*source.glob(f"{tensor.name}*.npy"), *(source / tensor.name).glob("*.npy")]
    if not files and alone:
        files = list(source.glob("*.npy"))
    if not files:
        raise UsageError(f"--input-data {source}: no {tensor.name}*.npy and no {tensor.name}/*.npy; add them")
    return [item for file in sorted(files) for item in _npy(file, tensor)]


def _npy(file: Path, tensor: Tensor) -> list[np.ndarray]:
    """The items in one file: an array of the input's shape, or several of them stacked."""
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{file}: not an array that can be read safely ({error}); save it again") from None
    if tensor.dtype == "BYTES" and array.dtype.kind == "S":
        array = array.astype(object)
    elif array.dtype != request_bytes.numpy_dtype(tensor.dtype, str(file)):
        raise UsageError(f"{file}: dtype {array.dtype}, but input {tensor.name} is {tensor.dtype}; convert it")
    if array.shape == tensor.shape:
        return [array]
    if array.shape[1:] == tensor.shape and array.ndim:
        return list(array)
    raise UsageError(
        f"{file}: shape {list(array.shape)}, but input {tensor.name} is {list(tensor.shape)} "
        f"(or any number of those, stacked); reshape it"
    )


def _raw_files(source: Path, target: Target) -> list[Item]:
    only = target.inputs[0]
    if len(target.inputs) != 1 or only.dtype != "BYTES" or int(np.prod(only.shape, dtype=np.int64)) != 1:
        raise UsageError(
            f"--input-data {source}: no .npy files; raw files suit only a model with one BYTES input of one element"
        )
    items = []
    for file in sorted(f for f in source.iterdir() if f.is_file()):
        array = np.empty(1, object)
        array[0] = file.read_bytes()
        items.append({only.name: array.reshape(only.shape)})
    return items
