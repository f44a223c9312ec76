"""What a measurement looks like in a terminal: the number, what makes it believable, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis import words
from analysis.words import number as number
from brim.records import Check, Saturation, SloRate, Target, TargetLimit
from experiments.measure.rates import LONGEST_S
from judging.backlog import CLIENT_LATE

#: What says when an open loop sends, each with a value.
OF_A_RATE = ("--rate", "--arrivals", "--cv", "--trace", "--speed-up", "--seconds", "--seed", "--outstanding")


def opening(target: Target, machine: Mapping[str, str], *, local: bool = True) -> str:
    """Target and environment in one line."""
    server = f"{words.clean(target.url, 160)}, Triton {words.clean(target.server_version, 40)}"
    return f"{server}, {'on' if local else 'loaded from'} {words.machine(machine)}"


def headline(s: Saturation) -> str:
    """`resnet50__b4  18.4 images/s (18.1 to 18.7, 3 starts) SATURATED by engine: busy 99%, batches 4.0 of 4`."""
    why = words.first_reason(s)
    return f"{words.clean(s.variant, 160)}  {words.rate(s)} {words.limit(s)}{f': {why}' if why else ''}"


def details(s: Saturation) -> list[str]:
    """The lines under the headline."""
    sender = words.rule(s, 3)
    lines = [f"at {words.point(s.at)}{_latency(s)}"]
    if sender is not None and sender.state == "held":  # else it stands among the checks
        lines.append(words.other_sender(s))
    if s.cross_check is not None:
        lines.append(f"cross-check: {words.cross_check(s)}")
    if s.in_process_items_per_s is not None:
        lines.append(f"engine alone: {words.alone(s)}")
    return [*lines, *words.further_reasons(s), *_checks(s.checks)]


def _latency(s: Saturation) -> str:
    if s.latency_ms is None:
        return ""
    queue = f"; queue {number(s.queue_ms)} ms" if s.queue_ms is not None else ""
    return f": p50 {number(s.latency_ms.p50)} ms, p99 {number(s.latency_ms.p99)} ms{queue}"


def _checks(checks: Sequence[Check]) -> list[str]:
    """One line for what held, and one for each rule that did not or has no say, with its reason."""
    held = " ".join(str(c.rule) for c in checks if c.state == "held")
    lines = [f"checks: {held or 'none'} held"]
    for state, told in (("broken", "BROKEN"), ("not_applicable", "not applicable")):
        lines += [f"  {c.rule} {c.name} {told}: {words.clean(c.reason)}" for c in checks if c.state == state]
    return lines


def scope(s: Saturation, target: Target) -> str:
    """What the number is not valid for."""
    return words.scope(words.not_valid_for(s, target))


def next_step(s: Saturation, target: Target) -> str:
    """The command to type next, and what it is good for."""
    command = s.command or f"brim loadtest {s.variant}"
    highest = max((p.at.concurrency or 1 for p in s.probes), default=s.at.concurrency or 1)
    if s.verdict == "unstable" and s.at.mode == "open" and words.first_reason(s).startswith(CLIENT_LATE):
        return f"next: {_with(command, '--senders', str(s.at.senders + 1))}  (sends from one process more)"
    if s.at.mode == "open" and s.verdict in ("point", "unstable") and target.server is not None:
        return f"next: brim loadtest {shlex.quote(s.variant)} --slo-ms auto  (finds the largest rate at an SLO)"
    if s.verdict == "point":
        return f"next: {_with(command, '--concurrency', None)}  (searches for the plateau)"
    if s.verdict == "still_rising":
        further = max(4 * highest, 2 * target.full)
        return f"next: {_with(command, '--concurrency', f'1:{further}')}  (climbs further)"
    if s.verdict == "client_limited" and "--master" in command:
        return "next: the same with more workers and a higher --expect-workers"
    if s.verdict == "client_limited":
        return f"next: {_with(command, '--senders', str(s.at.senders + 1))}  (begins with one more sender)"
    if s.verdict in ("failing", "server_lost") and target.server is None:
        return f"next: {command}  (once the server answers well)"
    if s.verdict in ("failing", "server_lost"):
        return "next: brim status  (says what is served, and why not)"
    if s.verdict in ("unstable", "aborted"):
        return f"next: {command}  (once the machine is quiet)"
    if s.ci_kind != "between_starts" and target.server is not None and target.server.mode != "remote":
        return f"next: {_with(command, '--starts', '3')}  (an interval over starts of the server)"
    return f"next: brim report {s.run}  (makes the report again)"


def after_slo(found: SloRate, command: str, target: Target, *, overload: bool) -> str:
    """The same where a rate at an SLO was asked for, `overload` with it or not; nothing where it has no say."""
    if found.verdict in ("met", "missed"):
        for option in OF_A_RATE:
            command = _with(command, option, None)
        return f"next: {command}  (finds the largest rate that meets it)"
    if found.verdict == "not_resolvable" and SloRate.NOT_IN_TIME in found.reason:
        twice_s = min(30 * math.ceil(2 * found.seconds_spent / 30), LONGEST_S)
        return f"next: {_with(command, '--slo-seconds', f'{twice_s:g}')}  (longer trials)"
    if found.verdict == "unattainable":
        return f"next: {_with(command, '--slo-ms', 'auto')}  (5 x the time of a full batch)"
    if found.verdict == "resolved" and not overload and target.variant is not None:
        return f"next: {command} --overload  (what users get beyond that rate)"
    return ""


def _with(command: str, option: str, value: str | None) -> str:
    """The command line with this option set to `value`, or without it."""
    told, skip = [], False
    for word in shlex.split(command):
        if not skip and word != option and not word.startswith(f"{option}="):
            told.append(word)
        skip = word == option and not skip
    return shlex.join(told if value is None else [*told, option, value])


def closing(report: Path) -> str:
    """Where the report is, as short as it can be named from here."""
    here = Path.cwd()
    return f"report: {report.relative_to(here) if report.is_relative_to(here) else report}"


def announcement(url: str, model: str, limit: TargetLimit, *, loads: int, seconds: float) -> str:
    """What may be sent to a host that is not this machine: target, rate, duration and total, before anything is."""
    cap = limit.max_rate_per_s
    rate = f"at most {number(cap)} requests/s" if cap else "as fast as it answers (no cap on the rate)"
    total = f"at most {number(cap * loads * seconds)} requests" if cap else "no cap on the total"
    lasting = f"at most {loads} loads of {seconds:.0f} s"
    return f"about to ask {url} for {model} and to load it: {rate}, {lasting}, {total}"
