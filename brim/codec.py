"""Records to JSON and back, and strict TOML to records: the one place that knows how a record looks on disk.

Brim's own JSON carries `schema`; a newer number is refused, keys that an older file lacks get the record's defaults.
User TOML has no schema and is strict: an unknown key is an error with a did-you-mean.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from brim.errors import InvalidRecord, UsageError, did_you_mean

SCHEMA = 1

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """A record as dicts, lists and scalars; floats that JSON cannot hold become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(record: Any, *, indent: int | None = None) -> str:
    """One JSON document with its schema number first."""
    text = json.dumps({"schema": SCHEMA, **to_plain(record)}, indent=indent, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair, in a server's own words


def from_json(kind: type[T], text: str | bytes, *, where: str) -> T:
    """The record in `text`; InvalidRecord names `where` and what is wrong."""
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise InvalidRecord(f"{where}: not JSON ({error}); remove it or write it again") from error
    if not isinstance(plain, dict):
        raise InvalidRecord(f"{where}: expected an object, found {type(plain).__name__}")
    schema = plain.pop("schema", 1)
    if not isinstance(schema, int) or schema > SCHEMA:
        known = f"this Brim reads up to {SCHEMA}; use the newer Brim that wrote it"
        raise InvalidRecord(f"{where}: schema {schema}, {known}")
    try:
        return build(kind, plain, where=where)
    except UsageError as error:  # nobody types these files: what is wrong with one is the record
        raise InvalidRecord(str(error)) from error


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """What a user's TOML file holds; UsageError names the file, what is wrong, and the option that names another."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; name a TOML file with {option}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a TOML file with {option}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error}); mend that line") from error


def build(kind: type[T], plain: Mapping[str, Any], *, where: str) -> T:
    """The record of `kind` in a mapping (of JSON or of TOML); unknown keys and wrong types are refused with `where`."""
    hints = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # kind is a record class
    for key in plain:
        if key not in fields:
            raise UsageError(f"{where}: unknown key {key!r}; {did_you_mean(key, fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in plain and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where}: key {missing[0]!r} is missing; add it")
    values = {key: _typed(hints[key], value, where=f"{where}: {key}") for key, value in plain.items()}
    try:
        return kind(**values)
    except InvalidRecord as error:
        raise InvalidRecord(f"{where}: {error}") from error


@functools.cache  # a run of a thousand records has twenty kinds
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(hint: Any, value: Any, *, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _typed_union(args, value, where=where)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value not in args:
            raise UsageError(f"{where}: {value!r} is not allowed; {did_you_mean(str(value), map(str, args))}")
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            names = [str(m.value) for m in hint]
            raise UsageError(f"{where}: {value!r} is not allowed; {did_you_mean(str(value), names)}") from None
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _expect(isinstance(value, Mapping), "a table", value, where)
        return build(hint, value, where=where)
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, where)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(args[0], v, where=f"{where}[{i}]") for i, v in enumerate(value))
        _expect(len(value) == len(args), f"{len(args)} values", value, where)
        return tuple(_typed(a, v, where=f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _expect(isinstance(value, Mapping), "a table", value, where)
        return {k: _typed(args[1], v, where=f"{where}.{k}") for k, v in value.items()}
    return _scalar(hint, value, where=where)


def _typed_union(args: tuple[Any, ...], value: Any, *, where: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    rest = [a for a in args if a is not types.NoneType]
    for hint in rest:
        try:
            return _typed(hint, value, where=where)
        except UsageError as error:
            failure = error
    raise failure


def _scalar(hint: Any, value: Any, *, where: str) -> Any:
    if hint is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, where)
        _expect(math.isfinite(value), "a finite number", value, where)
        return float(value)
    if hint is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), "a whole number", value, where)
    elif hint is bool:
        _expect(isinstance(value, bool), "true or false", value, where)
    elif hint is str:
        _expect(isinstance(value, str), "a string", value, where)
    return value


def _expect(held: bool, what: str, found: Any, where: str) -> None:
    if not held:
        raise UsageError(f"{where}: expected {what}, found {found!r}")
