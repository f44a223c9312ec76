"""How figures and verdicts are put into words: the same on the terminal, in the page and in the files.

Reads records, writes nothing. `clean` is the one gate that foreign text (names, errors of a server) passes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from brim.records import Check, LoadPoint, Saturation, Target

#: A longer reason or name is cut in the page; the run's own files keep it whole.
LONGEST = 400
#: CSI and OSC sequences whole: without their escape character the rest would stay behind as text.
_ANSI = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x9b[0-?]*[ -/]*[@-~]|\x1b.?", re.DOTALL
)
#: Marks that turn the reading direction of what follows, beyond the text that brought them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str, longest: int = LONGEST) -> str:
    """Foreign text as one line fit for a terminal, a page and a table: no escapes, controls or direction marks."""
    # Nothing below makes text longer; escapes may fill most of what a server sent.
    kept = text[: 16 * longest]
    if not kept.isprintable():  # nearly all is, and has nothing to take out
        kept = "".join(" " if _control(c) else c for c in _ANSI.sub("", kept) if c not in _BIDI)
    line = " ".join(kept.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def number(value: float) -> str:
    """Three significant digits below 1000, whole numbers with separators above."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if not value:
        return "0"
    digits = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:.{3 - digits}f}"


def known(value: float | None, unit: str = "") -> str:
    """A figure with its unit, or a dash where there is none: never a zero."""
    return "–" if value is None else f"{number(value)}{unit}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def rate(s: Saturation) -> str:
    """`18.4 images/s (18.1 to 18.7, 3 starts)`, or `no number`."""
    if s.items_per_s is None:
        return "no number"
    within = f" ({number(s.ci95[0])} to {number(s.ci95[1])}, {_over(s)})" if s.ci95 else " (no interval)"
    return f"{number(s.items_per_s)} {clean(s.item, 24)}s/s{within}"


def _over(s: Saturation) -> str:
    return plural(s.starts, "start") if s.ci_kind == "between_starts" else "within_run"


def bounds(s: Saturation) -> str:
    """The interval for a cell of a table: `18.1 to 18.7 (3 starts)`."""
    return f"{number(s.ci95[0])} to {number(s.ci95[1])} ({_over(s)})" if s.ci95 else "none"


def interval(s: Saturation) -> str:
    """What the interval says, in a sentence."""
    if s.ci95 is None:
        return "No interval: too few batches or windows were measured to draw one."
    told = f"{number(s.ci95[0])} to {number(s.ci95[1])} {clean(s.item, 24)}s/s"
    if s.ci_kind == "between_starts":
        return f"95% interval over {plural(s.starts, 'start')} of the server: {told}."
    return f"Within this one run: {told} (95%, over batch means; another start of the server may lie outside)."


def limit(s: Saturation) -> str:
    """`SATURATED by engine`, `STILL_RISING`."""
    return f"{s.verdict.upper()} by {s.limited_by}" if s.verdict == "saturated" else s.verdict.upper()


def first_reason(s: Saturation) -> str:
    """The first reason, without the limit's name in front of it."""
    return clean(s.reasons[0].removeprefix(f"{s.limited_by}: ")) if s.reasons else ""


def point(at: LoadPoint) -> str:
    """`16 requests of 2 items in flight over HTTP from 2 senders`."""
    items = f" of {plural(at.items_per_request, 'item')}" if at.items_per_request > 1 else ""
    closed = at.mode == "closed"
    asked = (
        f"{plural(at.concurrency or 0, 'request')}{items} in flight"
        if closed
        else f"{at.rate_per_s:g} requests/s{items}"
    )
    return f"{asked} over {way(at)}" + (f" from {at.senders} senders" if at.senders > 1 else "")


def brief(at: LoadPoint) -> str:
    """The same for a cell of a table: `16, HTTP`."""
    asked = str(at.concurrency) if at.mode == "closed" else f"{at.rate_per_s:g}/s"
    items = f" x {at.items_per_request} items" if at.items_per_request > 1 else ""
    return f"{asked}{items}, {way(at)}" + (f", {at.senders} senders" if at.senders > 1 else "")


def way(at: LoadPoint) -> str:
    """How items get in: `HTTP`, `gRPC through shared memory`."""
    by = "" if at.transport == "wire" else f" through {at.transport.replace('_', ' ')}"
    return f"{'HTTP' if at.protocol == 'http' else 'gRPC'}{by}" + (
        "" if at.compression == "none" else f", {at.compression}"
    )


def rule(s: Saturation, wanted: int) -> Check | None:
    return next((check for check in s.checks if check.rule == wanted), None)


def cross_check(s: Saturation) -> str:
    """`perf_analyzer 18.2 images/s (agrees, 1.1% apart)`; the word is rule 5's own."""
    check = rule(s, 5)
    if s.cross_check is None:
        return f"none ({clean(check.reason)})" if check and check.reason else "none"
    if check is None or check.state == "not_applicable":
        word = "compared, not judged" + (f": {clean(check.reason)}" if check and check.reason else "")
    elif check.value is None:
        word = f"not judged: {clean(check.reason)}"
    else:
        word = f"{'agrees' if check.state == 'held' else 'DISAGREES'}, {check.value:.1%} apart"
    return f"{clean(s.cross_check.generator, 40)} {number(s.cross_check.items_per_s)} {clean(s.item, 24)}s/s ({word})"


def alone(s: Saturation) -> str:
    """The engine alone, in this process and with an idle server, and what serving keeps of it."""
    if s.in_process_items_per_s is None:
        check = rule(s, 6)
        return f"not measured ({clean(check.reason)})" if check and check.reason else "not measured"
    served = "" if s.serving_efficiency is None else f"; serving efficiency {s.serving_efficiency:.3f}"
    return f"{number(s.in_process_items_per_s)} {clean(s.item, 24)}s/s{served}"


def other_sender(s: Saturation) -> str:
    """What one more sender process changed, in the words of rule 3."""
    check = rule(s, 3)
    return clean(check.reason) if check and check.reason else "no further sender was tried"


def further_reasons(s: Saturation) -> list[str]:
    """The reasons after the first, but for the other sender's, which stands on a line of its own."""
    return [reason for reason in map(clean, s.reasons[1:]) if reason != other_sender(s)]


def machine(parts: Mapping[str, str]) -> str:
    """`AMD EPYC, 2 cores, 24 GiB, no GPU`, from an environment's `machine`."""
    of = {key: clean(value, 120) for key, value in parts.items()}
    gpu = "no GPU" if of.get("gpu", "none") == "none" else of["gpu"]
    return f"{of.get('cpu', 'unknown CPU')}, {of.get('cores', '?')} cores, {of.get('memory_gib', '?')} GiB, {gpu}"


def scope(not_valid: Sequence[str]) -> str:
    """`not valid for A; B`: of each phrase what stands before its colon, the page has the rest."""
    return f"not valid for {'; '.join(phrase.partition(':')[0] for phrase in not_valid)}"


def not_valid_for(s: Saturation, target: Target) -> tuple[str, ...]:
    """What the figure must not be used for, each in a phrase that follows `not valid for`."""
    kind = "random inputs" if s.at.payload.startswith("random") else "the given inputs"
    dtypes = " + ".join(clean(t.dtype, 12) for t in target.inputs[:8])
    said = [
        "another machine, driver or version of the server",
        f"other inputs or another way in: {kind} of {dtypes} over {way(s.at)}",
    ]
    if s.at.mode == "closed":
        said.append(
            "your users' latency: a closed loop sets it itself, by what it keeps in flight, and sends nothing while "
            "the server stalls"
        )
    else:
        said.append(f"another rate, or arrivals by another law than {s.at.arrivals}")
    if target.server is not None and target.server.mode == "embedded" and not target.server.cpus:
        said.append("a server with its cores to itself: client and server shared them")
    if s.ci_kind != "between_starts":
        met = "one was measured" if s.starts < 2 else f"{s.starts} are too few for an interval"
        said.append(f"what differs from start to start of the server: {met}")
    if s.verdict not in ("saturated", "point"):
        said.append(f"capacity: the verdict is {s.verdict}")
    elif s.verdict == "point":
        said.append("capacity: one point was measured, no plateau is claimed")
    return tuple(said)
