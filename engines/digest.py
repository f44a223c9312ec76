"""One digest of the engines' own code, so that two measurements can tell whether they ran the same engine."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOM = Path(__file__).resolve().parent


def engines_digest(folder: Path = ROOM) -> str:
    """SHA-256 over the name and bytes of every Python file of this room."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
