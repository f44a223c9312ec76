"""The report of finished runs: one page that needs nothing else, the points as CSV and the answers as JSON.

Reads run folders, writes out/reports/<name>/{report.html, points.csv, summary.json} and points `latest` at them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from analysis import charts, finished, points, probes, rate_page, words
from analysis.finished import Finished
from analysis.summary import summarize
from brim import disk, layout
from brim.errors import UsageError
from brim.records import Check, Probe

#: The page stays of a size that a browser opens at once, however large the run; points.csv has every row.
MOST_ROWS = 200
MOST_TEXTS = 20
MOST_RUNS = 50

_RULES = {
    1: "the accounting adds up, client against server",
    2: "latency counts from the intended time",
    3: "what limits is shown by experiment",
    4: "batches and busy time are the server's own, once per execution",
    5: "two independent generators agree",
    6: "the engine alone stands beside",
    7: "outputs are checked under load",
    8: "servers of known capacity are measured right",
}
_STATES = {"held": "held", "broken": "BROKEN", "not_applicable": "not applicable"}
_PURPOSES = {
    "search": "search",
    "one_more_sender": "one more sender",
    "transfer": "other data path",
    "figure": "figure",
    "cross_check": "cross-check",
}


def write(out: Path, runs: Sequence[Path]) -> Path:
    """Make the report of these run folders; the path of its page."""
    return keep(out, [finished.read(folder) for folder in runs])


def keep(out: Path, runs: Sequence[Finished]) -> Path:
    """The same of runs that were read already. UsageError if they do not belong on one page."""
    if not runs:
        raise UsageError("a report needs at least one run; name one, or measure with `brim loadtest`")
    finished.refuse_unlike(runs)
    folder = layout.report_folder(out, _name(runs))
    disk.save_text(folder / "points.csv", points.csv_text(runs))
    disk.save(folder / "summary.json", summarize(runs))
    page = disk.save_text(folder / "report.html", html(runs))
    _make_latest(out, folder)
    return page


def html(runs: Sequence[Finished]) -> str:
    """The page; equal runs give equal bytes."""
    return _template().render(
        title=_title(runs),
        machine=words.machine(runs[0].run.environment.machine),
        runs=[_run(number, one) for number, one in enumerate(runs[:MOST_RUNS], 1)],
        left_out=max(0, len(runs) - MOST_RUNS),
        any_slo=any(one.slo for one in runs),
        hardware=_pairs(runs[0].run.environment.machine),
        software=_software(runs),
        cut_off=sum(one.cut_off for one in runs),
    )


def _name(runs: Sequence[Finished]) -> str:
    """The batch's id where these are all of its runs, else an id of its own, so that neither replaces the other."""
    last = max(one.run.batch_id for one in runs)
    if finished.whole(runs):
        return last
    chosen = hashlib.sha256("\n".join(sorted(one.run.id for one in runs)).encode()).hexdigest()
    return f"{last}-part-{chosen[:6]}"


def _make_latest(out: Path, folder: Path) -> None:
    link = layout.latest_report(out)
    fresh = link.with_name(f".latest.{secrets.token_hex(6)}")
    with disk.told(link):
        fresh.symlink_to(folder.name)
        try:
            os.replace(fresh, link)
        except OSError:
            fresh.unlink()
            raise


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _title(runs: Sequence[Finished]) -> str:
    return words.clean(runs[0].variant, 80) if len(runs) == 1 else f"{len(runs)} runs"


def _run(number: int, one: Finished) -> dict[str, Any]:
    """Everything that the page says of one run, as text, rows and charts."""
    answer, target = one.answer, one.run.target
    item = words.clean(answer.item if answer else target.item, 24)
    at_point = probes.at_the_load_point(one.probes)
    shares = probes.batch_shares(at_point)
    splits = probes.splits(one.probes)
    return {
        "anchor": f"run-{number}",
        "variant": words.clean(one.variant, 160),
        "id": words.clean(one.run.id, 160),
        "started": words.clean(one.run.started_utc, 40).replace("T", " ").replace("Z", " UTC"),
        "target": _target(one),
        "command": words.clean((answer.command if answer else "") or one.run.command, 1000),
        "loads": words.plural(max(len(one.probes), len(one.loads)), "load"),
        "item": item,
        "state": one.state,
        "answer": _answer(one) if answer else None,
        "open_loops": rate_page.open_loops(one, item),
        "without_requests": rate_page.without_requests(one),
        "slo": rate_page.slo(one.slo, item) if one.slo else None,
        "overload": rate_page.overload(one.overload, item) if one.overload else None,
        "apart": rate_page.apart(one),
        "curve": charts.curve(one.probes, answer, item),
        "levels": _levels(one.probes),
        "batches": charts.batches(shares, answer.max_batch if answer else target.max_batch),
        "shares": [(size, f"{share:.1%}") for size, share in shares.items()][:MOST_ROWS],
        "time": charts.time(splits),
        "splits": [
            (s.concurrency, words.known(s.queue), words.known(s.engine), words.known(s.outside))
            for s in splits[:MOST_ROWS]
        ],
        "probes": [_probe(probe) for probe in one.probes[:MOST_ROWS]],
        "more_probes": max(0, len(one.probes) - MOST_ROWS),
        "errors": _errors(one),
    }


def _target(one: Finished) -> str:
    target, answer = one.run.target, one.answer
    backend = f", {words.clean(answer.backend, 40)} backend" if answer else ""
    version = words.clean(target.server_version, 40)
    return f"{words.clean(target.model, 160)} at {words.clean(target.url, 160)} (Triton {version}{backend})"


def _answer(one: Finished) -> dict[str, Any]:
    s = one.answer
    assert s is not None
    most = max(1, s.max_batch or one.run.target.max_batch)
    latency = s.latency_ms
    figures = [
        ("p50 latency", words.known(latency.p50 if latency else None, " ms")),
        ("p99 latency", words.known(latency.p99 if latency else None, " ms")),
        ("effective batch", "–" if s.effective_batch is None else f"{s.effective_batch:.2f} of {most}"),
        ("engine busy", words.share(s.server_busy)),
        ("wait in the queue", words.known(s.queue_ms, " ms")),
        ("client CPU", words.known(s.client_cpu_cores, " cores")),
    ]
    return {
        "verdict": s.verdict.value,
        "words": words.limit(s),
        "rate": words.known(s.items_per_s),
        "interval": words.interval(s),
        "bounds": words.bounds(s),
        "start_means": [words.number(mean) for mean in s.start_means[:MOST_TEXTS]],
        "because": words.first_reason(s),
        "reasons": words.further_reasons(s)[:MOST_TEXTS],
        "at": words.point(s.at),
        "payload": words.clean(s.at.payload, 160),
        "sender": s.at.sender,
        "took": f"{s.seconds_spent / 60:.1f} minutes",
        "figures": figures,
        "cross_check": words.cross_check(s),
        "alone": words.alone(s),
        "other_sender": words.other_sender(s),
        "checks": [_check(check) for check in s.checks[:MOST_TEXTS]],
        "not_valid_for": words.not_valid_for(s, one.run.target),
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "rule": check.rule,
        "name": _RULES.get(check.rule, words.clean(check.name, 80)),
        "state": check.state,
        "words": _STATES[check.state],
        "value": "" if check.value is None else f"{check.value:.3g}",
        "bound": "" if check.bound is None else f"{check.bound:.3g}",
        "reason": words.clean(check.reason),
    }


def _probe(probe: Probe) -> dict[str, Any]:
    latency = probe.latency_ms
    return {
        "load": probe.load,
        "purpose": _PURPOSES[probe.purpose],
        "generator": probe.generator,
        "start": probe.server_start + 1,
        "at": words.brief(probe.at),
        "rate": words.known(probe.items_per_s),
        "interval": f"{words.number(probe.ci95[0])} to {words.number(probe.ci95[1])}" if probe.ci95 else "",
        "p50": words.known(latency.p50 if latency else None),
        "p99": words.known(latency.p99 if latency else None),
        "batch": "–" if probe.effective_batch is None else f"{probe.effective_batch:.2f}",
        "busy": words.share(probe.server_busy),
        "verdict": probe.verdict,
        "reason": words.clean(probe.reason),
    }


def _levels(all_probes: Sequence[Probe]) -> list[tuple[int, int, str, str]]:
    """Requests in flight, loads, rates and p99 of the curve: what the chart draws, as a table."""
    by_level: dict[int, list[Probe]] = {}
    for probe in all_probes:
        if probes.of_the_curve(probe) and probe.items_per_s is not None:
            by_level.setdefault(probe.at.concurrency or 0, []).append(probe)
    rows = []
    for level, there in sorted(by_level.items())[:MOST_ROWS]:
        rates = [p.items_per_s for p in there if p.items_per_s is not None]
        tails = [p.latency_ms.p99 for p in there if p.latency_ms]
        rows.append((level, len(there), _from_to(rates), _from_to(tails)))
    return rows


def _from_to(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, high = words.number(min(values)), words.number(max(values))
    return low if low == high else f"{low} to {high}"


def _errors(one: Finished) -> list[tuple[str, str]]:
    """What the server or the sockets said, most frequent first."""
    said: Counter[str] = Counter()
    for load in one.loads:
        said.update(load.errors)
    return [(words.clean(text), f"{count:,}") for text, count in said.most_common(MOST_TEXTS)]


def _pairs(of: Any) -> list[tuple[str, str]]:
    return [(words.clean(str(key), 80), words.clean(str(value), 200)) for key, value in of.items()]


def _software(runs: Sequence[Finished]) -> list[tuple[str, list[str]]]:
    """Each part with its version, or with all of its versions where the runs differ in it."""
    found: dict[str, dict[str, None]] = {}
    for one in runs:
        for key, value in _pairs(one.run.environment.software):
            found.setdefault(key, {})[value] = None
    return [(key, list(values)[:MOST_TEXTS]) for key, values in found.items()]
