"""Files that are never half written: save (temporary file, then rename), append a line, load; and locks.

A full disk or an unwritable folder becomes NoResource with the path; nothing already written is touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from brim import codec
from brim.errors import InvalidRecord, NoResource, NotReady

T = TypeVar("T")

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoResource(f"{path}: no room left ({error.strerror}); free some, or point --out elsewhere") from error
        raise NoResource(f"{path}: {error.strerror}; choose another folder with --out") from error


def make_folder(path: Path) -> Path:
    """The folder, made if need be; NoResource if something else stands there."""
    refuse_file(path)
    with told(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_file(path: Path) -> None:
    """NoResource if there is no folder at `path` and none can be, because a file stands there or above."""
    with told(path):
        for place in (path, *path.parents):
            if place.exists() and not place.is_dir():
                raise NoResource(f"{place} is a file, not a folder; remove it or choose another with --out")


def save_text(path: Path, text: str) -> Path:
    """Write `text` to `path` whole or not at all."""
    make_folder(path.parent)
    with told(path):
        # Not mkstemp: its 0600 would keep a container's user from reading a served variant.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            with temporary.open("x", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def save(path: Path, record: Any) -> Path:
    """One record as one indented JSON document, atomically."""
    return save_text(path, codec.to_json(record, indent=2) + "\n")


def append(path: Path, record: Any) -> None:
    """One record as one line; a kill leaves at most one broken last line, which load_lines forgives."""
    make_folder(path.parent)
    with told(path), path.open("a", encoding="utf-8") as stream:
        stream.write(codec.to_json(record) + "\n")
        stream.flush()


def load(kind: type[T], path: Path) -> T:
    """The record in a file; NotReady if there is none, InvalidRecord if it does not parse."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotReady(f"{path} does not exist; run the stage that writes it first") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRecord(f"{path}: cannot be read ({error})") from error
    return codec.from_json(kind, text, where=str(path))


def load_lines(kind: type[T], path: Path) -> list[T]:
    """The records of a .jsonl file; a last line that was cut off by a kill is left out, any other raises."""
    if not path.exists():
        return []
    # Only a line feed ends a line (a text may hold U+2028); a kill may also cut a character in two.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    records: list[T] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(codec.from_json(kind, line, where=f"{path}:{number}"))
        except InvalidRecord:
            if number < len(lines) or _is_json(line):
                raise
    return records


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with told(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an advisory lock on `path` while the block runs; NoResource(busy) if another process has it.

    The kernel drops it when the process ends, however it ends.
    """
    make_folder(path.parent)
    with told(path):
        handle = _open_lock(path)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoResource(busy) from None
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    """A descriptor of a lock file that whoever came first has made, another user perhaps: reading it is enough."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.fchmod(handle, 0o644)  # whatever our umask is
        return handle
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # some file systems lock only what may be written
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
