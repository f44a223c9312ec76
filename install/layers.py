"""Which make target needs which layers of `.venv/` and which parts of `.tools/`: one table, no code around it.

Reads, writes: nothing. Parses on Python 3.8, because the platform check reads it before a Python is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Layer of `.venv/` → extras of pyproject.toml that it is resolved from (the core dependencies are in each).
EXTRAS: dict[str, tuple[str, ...]] = {
    "core": (),
    "analysis": ("analysis",),
    "load": ("load",),
    "serve": ("serve",),
    "loadgen": ("loadgen",),
    "export-cpu": ("export", "engine-cpu"),
    "export-gpu": ("export", "engine-gpu"),
    "dev": ("dev",),
}


@dataclass(frozen=True)
class Needs:
    """What a make target stands on. `ability` is the word of the platform check that it hangs on."""

    ability: str
    layers: tuple[str, ...]
    binaries: bool = False
    stub: bool = False


_ALL = ("load", "serve", "loadgen", "export", "dev")

TARGETS: dict[str, Needs] = {
    "demo": Needs("embedded", ("load", "serve"), binaries=True, stub=True),
    "export": Needs("export", ("export",)),
    "serve": Needs("embedded", ("serve",), binaries=True, stub=True),
    "serve-elsewhere": Needs("remote", ("serve",)),
    "loadtest": Needs("local-load", ("load", "serve"), binaries=True, stub=True),
    "loadtest-url": Needs("load", ("load",), binaries=True),
    "calibrate-loadgen": Needs("local-load", ("load", "serve", "loadgen"), binaries=True, stub=True),
    "report": Needs("analysis", ("analysis",)),
    "status": Needs("load", ("serve",)),
    "down": Needs("load", ("serve",)),
    "doctor": Needs("load", ("serve",)),
    "gpu-check": Needs("export", ("export",)),
    "bundle": Needs("bundle", ("core",)),
    "test": Needs("tests", _ALL, binaries=True, stub=True),
    "check": Needs("tests", _ALL),
    "setup": Needs("tests", _ALL, binaries=True, stub=True),
    "lock": Needs("lock", ()),
    "offline": Needs("tests", ("load", "serve", "export"), binaries=True, stub=True),
    "analysis": Needs("analysis", ("analysis",)),
}


def resolved(layers: tuple[str, ...], device: str) -> tuple[str, ...]:
    """`export` becomes the lock of this machine's device: one runtime, never both."""
    return tuple(sorted(f"export-{device}" if layer == "export" else layer for layer in layers))
