"""One job for an engine in a process of its own: `python -m engines.run SPEC.json`.

Runs in the stub's environment too (standard library, numpy, the runtime). Reads SPEC.json, writes the JSON file
that its `result` names, atomically. Keys of both jobs (those with a value here may be left out):

    job       "ceiling" or "outputs"
    model     path of the model file
    result    path of the JSON file to write
    engine = "onnxruntime", threads = 1, device = "cpu", options = {}     as `open_engine` takes them
    cpus = []                                                             cores to stay on; [] = wherever

ceiling: how many items per second the engine gives with nobody else in the way.

    batch                  items in a batch
    inputs = {}            name -> shape of one item, needed where the model leaves more than the batch open
    seed = 0               of the random inputs, four batches of which are run in turn
    seconds = 5.0, min_batches = 20, warmup_batches = 3       it ends when both of the first two are reached
    → batch, batches, items, seconds, items_per_s, batch_s {first, median, min, max, all[]}

    `items_per_s` is over the whole stretch, gaps between batches included; `first` is the first of warm-up.

outputs: what the engine answers, to compare a server's answers with.

    samples                [{input name: path of a .npy with the batch dimension}, …]
    outputs_folder         where the answers are written
    → samples: [{output name: path of the .npy}, …] in the same order

Both answer schema, job, engine, provider, threads, device, cpus, open_s and software (python, numpy, runtime,
digest of engines/). A failure is {"schema", "job", "error", "word"} and an exit code as in brim/errors.py;
without a usable spec, one line on stderr and exit code 2.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brim.errors import BrimError, NoResource, UsageError, did_you_mean
from engines.digest import engines_digest
from engines.engine import Arrays, Engine, Port, open_engine

SCHEMA = 1
COMMON: dict[str, Any] = {
    "job": None, "model": None, "result": None,
    "engine": "onnxruntime", "threads": 1, "device": "cpu", "options": {}, "cpus": [],
}  # fmt: skip
#: What each job takes besides; None = must be given.
KEYS: dict[str, dict[str, Any]] = {
    "ceiling": {"batch": None, "inputs": {}, "seed": 0, "seconds": 5.0, "min_batches": 20, "warmup_batches": 3},
    "outputs": {"samples": None, "outputs_folder": None},
}
DISTINCT_BATCHES = 4


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with its defaults; UsageError names a key that is missing or unknown."""
    job = given.get("job")
    if job not in KEYS:
        raise UsageError(f"job {job!r} is unknown; {did_you_mean(str(job), KEYS)}")
    known = {**COMMON, **KEYS[job]}
    for key in given:
        if key not in known:
            raise UsageError(f"{job}: unknown key {key!r}; {did_you_mean(key, known)}")
    spec = {**known, **given}
    missing = [key for key, value in spec.items() if value is None]
    if missing:
        raise UsageError(f"{job}: key {missing[0]!r} is missing; add it")
    return spec


def random_batch(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]], batch: int, seed: int) -> Arrays:
    """A seeded batch for every input: floats in [0, 1), whole numbers 0 or 1 (valid as any index)."""
    rng = np.random.default_rng(seed)
    return {port.name: _random(port, (batch, *_item_shape(port, shapes)), rng) for port in ports}


def _item_shape(port: Port, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    shape = tuple(shapes.get(port.name, port.shape[1:]))
    if any(size < 0 for size in shape):
        raise UsageError(f"input {port.name!r} has the open shape {list(shape)}; give one under 'inputs'")
    return shape


def _random(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    if port.dtype.kind == "f":
        return rng.random(shape, dtype=np.float32).astype(port.dtype, copy=False)
    if port.dtype.kind in "iub":
        return rng.integers(0, 2, size=shape).astype(port.dtype)
    raise UsageError(f"input {port.name!r} holds {port.dtype}, which is not made at random; use job 'outputs'")


def run_ceiling(engine: Engine, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Batches back to back for at least `seconds` and `min_batches`."""
    if spec["batch"] < 1:
        raise UsageError(f"ceiling: batch is {spec['batch']}, must be >= 1")
    batches = [
        random_batch(engine.inputs, spec["inputs"], spec["batch"], spec["seed"] + i) for i in range(DISTINCT_BATCHES)
    ]
    first_s = _timed(engine, batches[0])
    for inputs in itertools.islice(itertools.cycle(batches), max(0, spec["warmup_batches"] - 1)):
        engine.run(inputs)
    lasted: list[float] = []
    start = time.perf_counter()
    for inputs in itertools.cycle(batches):
        lasted.append(_timed(engine, inputs))
        seconds = time.perf_counter() - start
        if seconds >= spec["seconds"] and len(lasted) >= spec["min_batches"]:
            break
    items = spec["batch"] * len(lasted)
    return {
        "batch": spec["batch"],
        "batches": len(lasted),
        "items": items,
        "seconds": seconds,
        "items_per_s": items / seconds,
        "batch_s": {
            "first": first_s,
            "median": statistics.median(lasted),
            "min": min(lasted),
            "max": max(lasted),
            "all": lasted,
        },
    }


def _timed(engine: Engine, inputs: Arrays) -> float:
    start = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - start


def run_outputs(engine: Engine, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's answer to every sample, saved as .npy files."""
    folder = Path(spec["outputs_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, str]] = []
    for index, sample in enumerate(spec["samples"]):
        answers = engine.run({name: load_array(Path(path)) for name, path in sample.items()})
        paths = {name: folder / f"{index}.{place}.npy" for place, name in enumerate(answers)}
        for name, path in paths.items():
            np.save(path, answers[name], allow_pickle=False)
        written.append({name: str(path) for name, path in paths.items()})
    return {"samples": written}


def load_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file; never a pickle."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path}: not a readable .npy file ({error}); write it with numpy.save") from error
    return array


JOBS: dict[str, Callable[[Engine, Mapping[str, Any]], dict[str, Any]]] = {
    "ceiling": run_ceiling,
    "outputs": run_outputs,
}


def do(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Pin, open the engine, do the job, and say with what it was done."""
    if spec["cpus"]:
        os.sched_setaffinity(0, spec["cpus"])
    start = time.perf_counter()
    engine = open_engine(
        spec["engine"], spec["model"], threads=spec["threads"], device=spec["device"], options=spec["options"]
    )
    open_s = time.perf_counter() - start
    answer = JOBS[spec["job"]](engine, spec)
    return {
        "schema": SCHEMA,
        "job": spec["job"],
        "engine": spec["engine"],
        "provider": engine.provider,
        "threads": spec["threads"],
        "device": spec["device"],
        "cpus": sorted(os.sched_getaffinity(0)),
        "open_s": open_s,
        "software": software(spec["engine"]),
        **answer,
    }


def software(engine: str) -> dict[str, str]:
    """Versions that decide how fast and how right the engine is."""
    found = {"python": platform.python_version(), "numpy": np.__version__, "engines": engines_digest()}
    for name in (engine, f"{engine}-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def save(path: Path, document: Mapping[str, Any]) -> None:
    """One JSON document, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream, allow_nan=False)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments: Sequence[str]) -> int:
    """Do the job in the spec; the exit code says how it ended."""
    try:
        spec_path = Path(arguments[0])
        given = json.loads(spec_path.read_text(encoding="utf-8"))
        result = Path(given["result"])
    except (IndexError, KeyError, OSError, TypeError, ValueError) as error:
        print(f"engines.run: no usable spec ({error!r}); python -m engines.run SPEC.json", file=sys.stderr)
        return UsageError.exit_code
    try:
        save(result, do(complete(given)))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # the process boundary: the parent reads what went wrong
        told = _as_brim(error)
        save(result, {"schema": SCHEMA, "job": given.get("job"), "error": str(told), "word": told.word})
        return told.exit_code
    return 0


def _as_brim(error: Exception) -> BrimError:
    if isinstance(error, BrimError):
        return error
    if isinstance(error, (OSError, MemoryError)):
        return NoResource(f"{type(error).__name__}: {error}; free what it names and run again")
    return BrimError(f"bug: {type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
