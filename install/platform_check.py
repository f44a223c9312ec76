"""Decides what works on this machine, and which Python to take: pure, from facts that others gather.

Reads, writes: nothing. Parses on Python 3.8, so that a machine with nothing newer still gets its line.
"""

from __future__ import annotations

from dataclasses import dataclass

from brim.machine import EMBEDDED_PYTHONS, MIN_GLIBC
from install.facts import Facts
from install.layers import Needs

PYTHONS = ((3, 11), (3, 12), (3, 13))

#: What works on any machine with a fit Python; the rest needs the binaries' platform.
ANYWHERE = ("load", "analysis", "lock")

ELSEWHERE = (
    "works here: analysis, and load to a remote server (make loadtest URL=http://HOST:8000 MODEL=NAME); "
    "does not work here: export, serve, demo, test, bundle"
)
EMBEDDED_NEEDS = "the embedded server needs Python 3.11 or 3.12 with its libpython"


@dataclass(frozen=True)
class PythonFacts:
    """One candidate, as it answered when it was run."""

    command: str
    version: tuple[int, int, int]
    executable: str  # the interpreter itself, behind shims and environments
    has_venv: bool
    libpython: str | None  # a libpython3.x.so.1.0 of the very same version

    @property
    def minor(self) -> tuple[int, int]:
        return self.version[:2]

    @property
    def dotted(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def dotted_minor(self) -> str:
        return ".".join(map(str, self.minor))

    @property
    def name(self) -> str:
        return f"python{self.dotted_minor}"

    @property
    def fit(self) -> bool:
        return self.minor in PYTHONS and self.has_venv

    @property
    def embeds(self) -> bool:
        return self.fit and self.dotted_minor in EMBEDDED_PYTHONS and self.libpython is not None


@dataclass(frozen=True)
class Choice:
    """The Python to take (None: there is none), and the one line to say about it (None: all is well)."""

    python: PythonFacts | None
    line: str | None


def unfit_because(facts: Facts) -> str | None:
    """Why the binaries do not run here; None where they do."""
    if facts.system != "Linux":
        name = "macOS" if facts.system == "Darwin" else facts.system
        return f"{name} {facts.machine}, not x86-64 Linux"
    if facts.machine not in ("x86_64", "amd64"):
        return f"Linux {facts.machine}, not x86-64"
    if facts.glibc is None:
        return "a C library other than glibc"
    if facts.glibc < MIN_GLIBC:
        found, least = (".".join(map(str, version)) for version in (facts.glibc, MIN_GLIBC))
        return f"glibc {found}, older than {least}"
    return None


def platform_line(facts: Facts) -> str | None:
    """What works here and what does not, in one line; None where everything does."""
    reason = unfit_because(facts)
    return None if reason is None else f"this machine has {reason}: {ELSEWHERE}"


def can(facts: Facts, needs: Needs) -> bool:
    return needs.ability in ANYWHERE or unfit_because(facts) is None


def choose(found: list[PythonFacts]) -> Choice:
    """The first candidate that can do everything, else the first that can do the most."""
    whole = next((python for python in found if python.embeds), None)
    if whole is not None:
        return Choice(whole, None)
    without_libpython = next((p for p in found if p.fit and p.dotted_minor in EMBEDDED_PYTHONS), None)
    if without_libpython is not None:
        name = f"lib{without_libpython.name}"
        return Choice(
            without_libpython,
            f"{EMBEDDED_NEEDS}: {name}.so.1.0 of {without_libpython.command} is not there; install {name} "
            f"(Debian, Ubuntu: apt install {name})",
        )
    newer = next((python for python in found if python.fit), None)
    if newer is not None:
        return Choice(newer, f"{EMBEDDED_NEEDS}; {newer.command} is {newer.dotted}, all else works on it")
    return Choice(None, _nothing_fits(found))


def _nothing_fits(found: list[PythonFacts]) -> str:
    bare = next((python for python in found if python.minor in PYTHONS), None)
    if bare is not None:
        return (
            f"{bare.command} ({bare.dotted}) cannot make environments: install {bare.name}-venv "
            f"(Debian, Ubuntu: apt install {bare.name}-venv)"
        )
    seen = ", ".join(f"{python.command} is {python.dotted}" for python in found) or "none answered"
    return (
        f"Brim needs Python 3.11, 3.12 or 3.13 ({seen}): install python3.12 and python3.12-venv, "
        "or name one: make PYTHON=/path/to/python3.12 ..."
    )
