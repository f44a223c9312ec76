"""Which ways of serving there are: serve/configs.toml, or the user's own file, as ServingConfigs.

Reads strict TOML (a table for each config, the first is the default); writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from brim import codec
from brim.errors import UsageError, did_you_mean
from brim.records import ServingConfig

DEFAULT_FILE = Path(__file__).with_name("configs.toml")

Mode = Literal["embedded", "docker", "remote"]

#: Triton keeps sizes and counts in 32 bits.
LARGEST_NUMBER = 2**31 - 1
NUMBERS = ("max_batch", "queue_delay_us", "max_queue_size", "queue_timeout_us", "instances", "threads")
#: engine -> the backend of Triton that runs the same; the python backend runs what engines/ has a module for.
NATIVE_BACKENDS = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt_plan"}


def read_configs(file: Path | None) -> dict[str, ServingConfig]:
    """Every config of `file` (None = Brim's own), in its order; UsageError says what is wrong and where."""
    path = file or DEFAULT_FILE
    document = codec.read_toml(path, "--configs")
    if not document:
        raise UsageError(f"{path} holds no config; write at least one table, e.g. [b4] with max_batch = 4")
    return {name: _config(name, table, path) for name, table in document.items()}


def default_config(configs: Mapping[str, ServingConfig]) -> ServingConfig:
    """The first of the file."""
    return next(iter(configs.values()))


def choose(configs: Mapping[str, ServingConfig], name: str) -> ServingConfig:
    """The config of that name; UsageError with a did-you-mean."""
    if name not in configs:
        raise UsageError(f"there is no config {name!r}; {did_you_mean(name, configs)}")
    return configs[name]


def _config(name: str, table: Any, path: Path) -> ServingConfig:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} = {table!r} stands outside a table; write [NAME] above it")
    where = f"{path}: [{name}]"
    keys = [field.name for field in dataclasses.fields(ServingConfig) if field.name != "name"]
    for key in table:
        if key not in keys:
            raise UsageError(f"{where}: unknown key {key!r}; {did_you_mean(key, keys)}")
    config = codec.build(ServingConfig, {"name": name, **table}, where=where)
    contradiction = _contradiction(config)
    if contradiction:
        raise UsageError(f"{where}: {contradiction}")
    return config


def _contradiction(config: ServingConfig) -> str | None:
    """Why no server can do what the config says, or None."""
    preferred = list(config.preferred_batches)
    largest = max(preferred, default=config.max_batch)
    for name in NUMBERS:
        if getattr(config, name) > LARGEST_NUMBER:
            return f"{name} is {getattr(config, name)}, more than Triton can hold ({LARGEST_NUMBER})"
    if config.engine == "known":
        return "engine 'known' is what known servers get by themselves; leave engine out"
    if config.backend not in ("auto", "python") and NATIVE_BACKENDS.get(config.engine) != config.backend:
        return f"backend {config.backend} does not run engine {config.engine}; leave backend out"
    if len(set(preferred)) < len(preferred):
        return f"preferred_batches {preferred} names a batch twice; name each once"
    if largest < config.max_batch and not config.queue_delay_us:
        # Without a delay Triton never goes beyond the largest preferred batch: a plateau that is not the engine's.
        return (
            f"preferred_batches {preferred} caps every batch at {largest} while queue_delay_us is 0; "
            f"add {config.max_batch} to it, or lower max_batch"
        )
    if 0 < config.queue_timeout_us <= config.queue_delay_us:
        return (
            f"queue_timeout_us {config.queue_timeout_us} rejects what queue_delay_us {config.queue_delay_us} "
            "still holds back; make it longer"
        )
    return None


def resolve(config: ServingConfig, *, mode: Mode, known: bool) -> ServingConfig:
    """The config as it will be served there, with no `auto` left; UsageError if it cannot be.

    `known`: for a known server, whose engine is then `known`.
    """
    return _resolve_known(config, mode) if known else _resolve_model(config, mode)


def _resolve_known(config: ServingConfig, mode: Mode) -> ServingConfig:
    if mode != "embedded":
        raise UsageError(f"a known server logs into the embedded server's folder; it cannot be served in mode {mode}")
    if config.backend not in ("auto", "python"):
        raise UsageError(f"config {config.name}: backend {config.backend} runs no known server; choose another config")
    without_engine = ServingConfig(name=config.name)
    for key in ("engine", "precision", "threads", "engine_options"):
        if getattr(config, key) != getattr(without_engine, key):
            raise UsageError(
                f"config {config.name} sets {key}, but a known server has no engine; choose another config"
            )
    return dataclasses.replace(config, engine="known", backend="python")


def _resolve_model(config: ServingConfig, mode: Mode) -> ServingConfig:
    if config.engine != "onnxruntime":
        raise UsageError(
            f"config {config.name}: export writes model.onnx, which engine {config.engine} does not run; "
            'set engine = "onnxruntime"'
        )
    usual: Literal["python", "onnxruntime"] = "python" if mode == "embedded" else "onnxruntime"
    if config.backend not in ("auto", usual):
        other = "docker" if mode == "embedded" else "embedded"
        raise UsageError(
            f"config {config.name}: there is no backend {config.backend} for models in mode {mode}; "
            f'set backend = "auto", or serve in mode {other}'
        )
    return dataclasses.replace(config, backend=usual)
