"""A secret that is to be found nowhere, and every form in which it could be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

CANARY = 'brim-canary-8a41/+?"d0'


def token(folder: Path) -> Path:
    """A file that holds the canary as a bearer token, in a folder `secrets` of its own."""
    file = folder / "secrets" / "token"
    file.parent.mkdir(parents=True)
    file.write_text(f"Bearer {CANARY}\n")
    return file


def forms(secret: str) -> list[bytes]:
    """A secret as text, JSON and URLs hold it."""
    return [form.encode() for form in (secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""))]


def seen_by_others(pids: Iterable[int]) -> list[bytes]:
    """What every user of this machine can read of these processes, and what their children inherit."""
    return [Path(f"/proc/{pid}/{what}").read_bytes() for pid in pids for what in ("cmdline", "environ")]


def kept(folder: Path) -> list[bytes]:
    """The bytes of every file in `folder` but those that are to hold the secret."""
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.parent.name != "secrets"]


def assert_nowhere(texts: Iterable[bytes]) -> None:
    for text in texts:
        for form in forms(CANARY):
            assert form not in text
