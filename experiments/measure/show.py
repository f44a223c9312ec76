"""What a measurement looks like in a terminal: the number first, then what makes it believable."""

from __future__ import annotations

from collections.abc import Sequence

from brim.records import Check, LoadPoint, Saturation, Target, TargetLimit


def headline(s: Saturation) -> str:
    """`resnet50__b4  18.4 images/s (18.1 to 18.7, within_run) SATURATED by engine: …`."""
    limit = f" by {s.limited_by}" if s.verdict == "saturated" else ""
    why = f": {s.reasons[0].removeprefix(s.limited_by + ': ')}" if s.reasons else ""
    return f"{s.variant}  {_rate(s)} {s.verdict.upper()}{limit}{why}"


def _rate(s: Saturation) -> str:
    if s.items_per_s is None:
        return "no number"
    interval = f" ({number(s.ci95[0])} to {number(s.ci95[1])}, {s.ci_kind})" if s.ci95 else ""
    return f"{number(s.items_per_s)} {s.item}s/s{interval}"


def number(value: float) -> str:
    """Three significant digits below 1000, whole numbers with separators above."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f}" if value else "0"


def details(s: Saturation) -> list[str]:
    """The lines under the headline."""
    lines = [f"at {_point(s.at)}{_latency(s)}"]
    if s.cross_check is not None:
        word = "agrees" if s.cross_check.agrees else "DISAGREES"
        apart = next((f", medians {c.value:.1%} apart" for c in s.checks if c.rule == 5 and c.value is not None), "")
        other = f"{number(s.cross_check.items_per_s)} {s.item}s/s ({word}{apart})"
        lines.append(f"cross-check: {s.cross_check.generator} {other}")
    if s.in_process_items_per_s is not None and s.serving_efficiency is not None:
        alone = f"{number(s.in_process_items_per_s)} {s.item}s/s"
        lines.append(f"engine alone: {alone}; serving efficiency {s.serving_efficiency:.3f}")
    lines.extend(s.reasons[1:])
    return [*lines, *_checks(s.checks)]


def _point(at: LoadPoint) -> str:
    senders = f" from {at.senders} senders" if at.senders > 1 else ""
    items = f" of {at.items_per_request} items" if at.items_per_request > 1 else ""
    return f"{at.concurrency} requests{items} in flight over {at.protocol.upper()}{senders}"


def _latency(s: Saturation) -> str:
    if s.latency_ms is None:
        return ""
    queue = f"; queue {number(s.queue_ms)} ms" if s.queue_ms is not None else ""
    return f": p50 {number(s.latency_ms.p50)} ms, p99 {number(s.latency_ms.p99)} ms{queue}"


def _checks(checks: Sequence[Check]) -> list[str]:
    """One line for what held, and one for each rule that did not or has no say, with its reason."""
    held = " ".join(str(c.rule) for c in checks if c.state == "held")
    lines = [f"checks: {held or 'none'} held"]
    lines += [f"  {c.rule} {c.name} BROKEN: {c.reason}" for c in checks if c.state == "broken"]
    return lines + [f"  {c.rule} {c.name} not applicable: {c.reason}" for c in checks if c.state == "not_applicable"]


def scope(s: Saturation, target: Target) -> str:
    """What the number is not valid for."""
    kind = "a random input" if s.at.payload.startswith("random") else "the given input"
    what = f"{kind} of {' + '.join(t.dtype for t in target.inputs)} over {s.at.protocol.upper()} {s.at.transport}"
    shared = " with client and server on the same cores" if target.server and target.server.mode == "embedded" else ""
    return f"valid for this machine{shared}, {what}; latency at a closed loop is set by the load, not by your users"


def announcement(url: str, model: str, limit: TargetLimit, *, loads: int, seconds: float) -> str:
    """What may be sent to a host that is not this machine: target, rate, duration and total, before anything is."""
    cap = limit.max_rate_per_s
    rate = f"at most {number(cap)} requests/s" if cap else "as fast as it answers (no cap on the rate)"
    total = f"at most {number(cap * loads * seconds)} requests" if cap else "no cap on the total"
    lasting = f"at most {loads} loads of {seconds:.0f} s"
    return f"about to ask {url} for {model} and to load it: {rate}, {lasting}, {total}"
