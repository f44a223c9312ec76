"""Waits until a server has loaded what it can, and says of each variant whether it is ready and why not.

Reads: the server over HTTP, its log. Writes: nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.errors import NotReady
from brim.kserve import KServe

POLL_S = 0.1
_TAIL_BYTES = 64 * 1024
_STAMP = re.compile(r"^[IWEF]\d{4}\s+[\d:.]+\s+\d+\s+[\w.]+:\d+\]\s*")
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_PORT_TAKEN = re.compile(r"already in use|failed to start \w+ service", re.IGNORECASE)
_LONGEST_REASON = 300
#: Errors that every server logs on a machine without a GPU, or that only repeat what another line says.
_NOISE = ("CudaDriverHelper", "failed to load all models", "NVML", "DCGM")


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantState:
    """Whether one variant can be asked now; `reason` is empty where it can."""

    name: str
    ready: bool
    reason: str = ""

    @property
    def line(self) -> str:
        return f"{self.name}: ready" if self.ready else f"{self.name}: not ready: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server said when it first answered with everything loaded or refused."""

    version: str
    states: tuple[VariantState, ...]


def states(
    index: Iterable[Mapping[str, Any]], variants: Sequence[str], log: Sequence[str] = ()
) -> tuple[VariantState, ...]:
    """The state of each variant from the repository index; the log speaks for one that the index does not know."""
    entries = {str(entry.get("name")): entry for entry in index}
    return tuple(_state(name, entries.get(name), log) for name in variants)


def _state(name: str, entry: Mapping[str, Any] | None, log: Sequence[str]) -> VariantState:
    if entry is not None and entry.get("state") == "READY":
        return VariantState(name=name, ready=True)
    told = one_line(str((entry or {}).get("reason") or ""))
    reason = told or said_of(name, log) or str((entry or {}).get("state") or "the server does not know it")
    return VariantState(name=name, ready=False, reason=reason)


def require_one_ready(found: Sequence[VariantState], log: Path) -> None:
    """NotReady if a server has nothing to serve: then it need not stay."""
    if not any(state.ready for state in found):
        reasons = "; ".join(f"{state.name}: {state.reason}" for state in found)
        raise NotReady(f"no variant is ready, so the server was stopped; {reasons}; log: {log}")


def one_line(reason: str) -> str:
    """A reason of Triton's as one line: a Python traceback is cut to its error, the list of places goes."""
    text = reason.replace("\\n", "\n").partition("\n\nAt:")[0]
    text = " ".join(text.split()).removeprefix("Internal: ").removeprefix("Invalid argument: ")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def said_of(name: str, log: Sequence[str]) -> str:
    """The last error in the log that names the variant."""
    whole_name = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    about = [line for line in log if line.startswith("E") and whole_name.search(line)]
    return bare(about[-1]) if about else ""


def bare(line: str) -> str:
    """A log line without its stamp and quotes."""
    return one_line(_STAMP.sub("", line).strip().strip('"'))


def last_words(log: Sequence[str]) -> str:
    """Why a server ended, from its log, in one line: its last errors, else its last lines."""
    plain = [line for line in log if line.strip() and not line.lstrip().startswith(("+", "|"))]
    plain = [line for line in plain if not any(noise in line for noise in _NOISE)]
    lines = [line for line in plain if line.startswith(("E", "F")) and _STAMP.match(line)] or plain
    kept = [bare(line) for line in lines[-2:]]
    return "; ".join(kept) if kept else "its log is empty"


def port_was_taken(log: Sequence[str]) -> bool:
    """Whether the server ended because somebody took its port between our look and its bind."""
    return any(_PORT_TAKEN.search(line) for line in log)


def loaded(log: Iterable[str]) -> set[str]:
    """The variants that the log says are loaded."""
    return {found.group(1) for line in log if (found := _LOADED.search(line))}


def tail(log: Path) -> list[str]:
    """The last lines of a log, however long it is; [] if there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def wait(
    *,
    url: str,
    server_id: str,
    variants: Sequence[str],
    log: Callable[[], list[str]],
    ended: Callable[[], str | None],
    wait_s: float,
    progress: Callable[[str], None],
) -> Answer:
    """Poll until the server has loaded what it can. NotReady if it ends before, or at the deadline.

    Triton answers HTTP only after every model was tried, so until then the log is all that there is to see.
    """
    deadline = time.monotonic() + wait_s
    seen: set[str] = set()
    while True:
        if (how := ended()) is not None:
            raise NotReady(f"tritonserver ended while it started ({how}): {last_words(log())}")
        if (answer := _ask(url, server_id, variants, log)) is not None:
            return answer
        fresh = loaded(log()) - seen
        for name in sorted(fresh):
            progress(f"  {name} loaded")
        seen |= fresh
        if time.monotonic() > deadline:
            missing = [name for name in variants if name not in seen]
            raise NotReady(f"not ready after {wait_s:.0f} s: {', '.join(missing)} still loading; {last_words(log())}")
        time.sleep(POLL_S)


def _ask(url: str, server_id: str, variants: Sequence[str], log: Callable[[], list[str]]) -> Answer | None:
    """The answer, or None where there is not yet one."""
    kserve = KServe(url, timeout_s=5.0)
    try:
        about = kserve.metadata()
        index = kserve.repository_index()
    except NotReady:
        return None
    if about.get("name") != server_id:
        return None  # somebody else's port: ours will end as soon as it tries to bind
    loading = {str(entry.get("name")) for entry in index if entry.get("state") in ("LOADING", "UNLOADING")}
    if loading & set(variants):
        return None
    return Answer(version=str(about.get("version", "")), states=states(index, variants, log()))
