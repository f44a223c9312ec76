"""What every record checks of itself."""

from __future__ import annotations

import re

from brim.errors import InvalidRecord

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]|_(?!_)){0,62}")


def check_name(name: str, what: str) -> None:
    """Names become folders and URLs, and `__` joins model and config: letters, digits, `-` and single `_` only."""
    if not NAME.fullmatch(name) or name.endswith("_"):
        raise InvalidRecord(f"{what} {name!r}: use a-z, 0-9, - and single _ (at most 63, starting with a-z or 0-9)")


def require(held: bool, message: str) -> None:
    """InvalidRecord with this message unless it held."""
    if not held:
        raise InvalidRecord(message)
