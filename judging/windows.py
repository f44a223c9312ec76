"""Rows and statistics reads of one load → the windows it holds, accounted to the last request.

Reads the rows of a load after its drain and the reads made beside it; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from brim.errors import InvalidRecord, Lost
from brim.records import Cpu, Gpu, Latency, LoadPoint, ServerDelta, StatsRead, Status, StepCount, Window
from judging.edges import Counts, Nanoseconds, whole_batch_edge
from judging.rows import Rows
from judging.steady import Steady
from judging.tolerances import WINDOW_MAX_S, WINDOW_MIN_BATCHES, WINDOW_MIN_S

Generator: TypeAlias = Literal["locust", "perf_analyzer", "loadgen"]

#: Spacing of the window edges where no statistics are read.
UNREAD_SPACING_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """A completion instant beside a read of the statistics (None where there are none)."""

    at_ns: int
    read: StatsRead | None


def by_completion(rows: Rows) -> Rows:
    """The rows in the order in which they ended, which every function here expects; refuses rows that lie."""
    if rows.size and np.any(rows["done_ns"] < rows["sent_ns"]):
        at = int(np.argmax(rows["done_ns"] < rows["sent_ns"]))
        raise InvalidRecord(f"row {at}: a request ended before it was sent; the sender's clock is not monotonic")
    done_ns = np.ascontiguousarray(rows["done_ns"])
    if np.all(done_ns[1:] >= done_ns[:-1]):
        return rows
    return rows[np.argsort(done_ns, kind="stable")]


def answered(rows: Rows) -> tuple[Nanoseconds, Counts]:
    """Completion instants and items of the requests that ended well; `rows` are sorted by completion."""
    ok = rows[rows["status"] == Status.OK]
    return np.ascontiguousarray(ok["done_ns"]), np.ascontiguousarray(ok["items"])


def batch_period_ns(reads: Sequence[StatsRead], rows: Rows, *, from_ns: int, until_ns: int) -> int:
    """Mean time from batch to batch, by the server's count of executions.

    Without statistics the median latency stands in: a request stays for at least one batch, so it is no less.
    """
    inside = [read for read in reads if from_ns <= read.middle_ns <= until_ns]
    batches = inside[-1].batches - inside[0].batches if inside else 0
    if batches > 0:
        return max(1, (inside[-1].middle_ns - inside[0].middle_ns) // batches)
    ok = rows[rows["status"] == Status.OK]
    return max(1, int(np.median(ok["done_ns"] - ok["sent_ns"]))) if ok.size else 1


def cut_windows(
    rows: Rows,
    reads: Sequence[StatsRead],
    *,
    generator: Generator,
    point: LoadPoint,
    steady: Steady,
    until_ns: int,
    period_ns: int,
    min_seconds: float = WINDOW_MIN_S,
    min_batches: int = WINDOW_MIN_BATCHES,
    max_seconds: float = WINDOW_MAX_S,
) -> list[Window]:
    """The warm-up, and as many measured windows as what follows it holds; `rows` are sorted by completion.

    Windows lie between reads of the statistics, end to end; the last one takes what is left over. Sending
    stops at `until_ns`. Without reads the edges lie a second apart and the windows know nothing of the server.
    """
    if rows.size == 0:
        return []
    edges = _edges(rows, reads, period_ns, until_ns)
    firm = [edge for edge in edges if edge.at_ns >= steady.from_ns]
    spans = _spans(firm, min_seconds=min_seconds, min_batches=min_batches, max_seconds=max_seconds)
    first_sent_ns = int(rows["sent_ns"].min())
    start = _Edge(at_ns=first_sent_ns - 1, read=_before(reads, first_sent_ns))
    first = spans[0][0] if spans else firm[0] if firm else edges[-1] if edges else None
    windows = []
    if first is not None and first.at_ns > start.at_ns:
        windows.append(_window(rows, start, first, reads, generator, point, kind="warmup"))
    for a, b in spans:
        reasons = steady.reasons + _holds(a, b, min_batches)
        windows.append(_window(rows, a, b, reads, generator, point, unstable=steady.unstable, reasons=reasons))
    return windows


def window(
    rows: Rows,
    *,
    start_ns: int,
    end_ns: int,
    generator: Generator,
    point: LoadPoint,
    first: StatsRead | None = None,
    last: StatsRead | None = None,
    kind: Literal["warmup", "measured"] = "measured",
    gpu_told: Gpu | None = None,
    unstable: bool = False,
    reasons: tuple[str, ...] = (),
) -> Window:
    """Account for (start_ns, end_ns]: a request belongs to where it ended; `rows` are by completion."""
    done_ns, sent_ns = rows["done_ns"], rows["sent_ns"]
    from_row, to_row = np.searchsorted(done_ns, (start_ns, end_ns), side="right")
    ended = rows[from_row:to_row]
    statuses = np.bincount(ended["status"], minlength=len(Status))
    sent_until_start = int(np.count_nonzero(sent_ns <= start_ns))
    sent_until_end = int(np.count_nonzero(sent_ns <= end_ns))
    return Window(
        generator=generator,
        point=point,
        start_ns=start_ns,
        end_ns=end_ns,
        kind=kind,
        items_ok=int(ended["items"][ended["status"] == Status.OK].sum(dtype=np.int64)),
        in_flight_start=sent_until_start - int(from_row),
        sent=sent_until_end - sent_until_start,
        ok=int(statuses[Status.OK]),
        rejected=int(statuses[Status.REJECTED]),
        timed_out=int(statuses[Status.TIMED_OUT]),
        failed=int(statuses[Status.FAILED]),
        cancelled=int(statuses[Status.CANCELLED]),
        in_flight_end=sent_until_end - int(to_row),
        latency_ms=latency(ended),
        server=server_delta(first, last) if first and last else None,
        cpu=cpu(first, last) if first and last else None,
        gpu=gpu_told,
        unstable=unstable,
        reasons=reasons,
    )


def latency(rows: Rows) -> Latency | None:
    """From the intended time to the answer, in ms; timed-out requests count with their limit.

    A percentile is the smallest observed latency that at least that share of the requests did not exceed
    (rank ceil(n p), nothing interpolated): batches answer in clusters, and between them nobody waited.
    """
    counts = rows[(rows["status"] == Status.OK) | (rows["status"] == Status.TIMED_OUT)]
    if counts.size == 0:
        return None
    ms = (counts["done_ns"] - counts["intended_ns"]) / 1e6
    p50, p90, p95, p99 = np.percentile(ms, (50, 90, 95, 99), method="inverted_cdf")
    return Latency(mean=float(ms.mean()), p50=float(p50), p90=float(p90), p95=float(p95), p99=float(p99))


def server_delta(first: StatsRead, last: StatsRead) -> ServerDelta:
    """What the server did between two reads; Lost if its counters went back."""
    grown = {
        name: getattr(last, name) - getattr(first, name)
        for name in (
            "inference_count",
            "execution_count",
            "success_count",
            "fail_count",
            "queue_ns",
            "request_ns",
            "busy_ns",
            "infer_ns",
        )
    }
    steps = {name: _step_delta(before, last.steps[name]) for name, before in first.steps.items() if name in last.steps}
    sizes = sorted({*first.batch_counts, *last.batch_counts}, key=int)
    batches = {size: last.batch_counts.get(size, 0) - first.batch_counts.get(size, 0) for size in sizes}
    of_steps = {f"{name}.inference_count": step.inference_count for name, step in steps.items()}
    back = [name for name, n in {**grown, **batches, **of_steps}.items() if n < 0]
    if back:
        raise Lost(f"the server's counter {back[0]} went back: it restarted or reloaded the model; measure again")
    return ServerDelta(
        read_width_ns=(first.after_ns - first.before_ns) + (last.after_ns - last.before_ns),
        seconds=(last.middle_ns - first.middle_ns) / 1e9,
        batch_counts={size: n for size, n in batches.items() if n},
        steps=steps,
        **grown,
    )


def _step_delta(first: StepCount, last: StepCount) -> StepCount:
    return StepCount(
        inference_count=last.inference_count - first.inference_count,
        execution_count=last.execution_count - first.execution_count,
        success_count=last.success_count - first.success_count,
        queue_ns=last.queue_ns - first.queue_ns,
        busy_ns=last.busy_ns - first.busy_ns,
        instances=last.instances,
    )


def gpu(reads: Sequence[StatsRead]) -> Gpu | None:
    """The mean over the reads, each column over those that know it; None where none does."""
    known = [read.gpu for read in reads if read.gpu is not None]
    if not known:
        return None
    return Gpu(
        utilization=_known_mean([g.utilization for g in known]),
        power_w=_known_mean([g.power_w for g in known]),
        memory_used_bytes=_known_mean([g.memory_used_bytes for g in known]),
        memory_total_bytes=_known_mean([g.memory_total_bytes for g in known]),
    )


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def cpu(first: StatsRead, last: StatsRead) -> Cpu:
    """Processor time between two reads; a client counter that went back began again with new processes."""
    client_s = last.client_cpu_s - first.client_cpu_s
    server_s, share = None, None
    if first.server_cpu_s is not None and last.server_cpu_s is not None:
        server_s = last.server_cpu_s - first.server_cpu_s
    if first.machine_busy_s is not None and last.machine_busy_s is not None:
        total_s = (last.machine_total_s or 0.0) - (first.machine_total_s or 0.0)
        share = (last.machine_busy_s - first.machine_busy_s) / total_s if total_s > 0 else None
    return Cpu(client_s=client_s if client_s >= 0 else last.client_cpu_s, server_s=server_s, machine_share=share)


def _edges(rows: Rows, reads: Sequence[StatsRead], period_ns: int, until_ns: int) -> list[_Edge]:
    """The possible edges: one whole-batch edge beside each read within the load, each instant once."""
    done_ns, _ = answered(rows)
    if done_ns.size == 0:
        return []
    near: Sequence[tuple[int, StatsRead | None]] = [(read.middle_ns, read) for read in reads]
    if not reads:
        near = [(at, None) for at in range(int(done_ns[0]), until_ns, UNREAD_SPACING_NS)]
    edges: list[_Edge] = []
    for at_ns, read in near:
        if not int(done_ns[0]) <= at_ns <= min(until_ns, int(done_ns[-1])):
            continue
        edge_ns = whole_batch_edge(done_ns, at_ns, period_ns)
        if not edges or edge_ns > edges[-1].at_ns:
            edges.append(_Edge(at_ns=edge_ns, read=read))
    return edges


def _spans(
    edges: Sequence[_Edge], *, min_seconds: float, min_batches: int, max_seconds: float
) -> list[tuple[_Edge, _Edge]]:
    """The shortest windows that are long enough, one after the other; what is left over goes to the last."""
    spans: list[tuple[_Edge, _Edge]] = []
    at = 0
    while (to := _end(edges, at, min_seconds, min_batches, max_seconds)) is not None:
        spans.append((edges[at], edges[to]))
        at = to
    if spans and _seconds(spans[-1][0], edges[-1]) <= max_seconds:
        spans[-1] = (spans[-1][0], edges[-1])
    return spans


def _end(edges: Sequence[_Edge], at: int, min_seconds: float, min_batches: int, max_seconds: float) -> int | None:
    """Index of the edge where a window from `at` ends: long and full enough, or as long as it may be."""
    for to in range(at + 1, len(edges)):
        seconds = _seconds(edges[at], edges[to])
        step = _seconds(edges[to - 1], edges[to])
        if seconds > max_seconds:
            return to - 1 if to - 1 > at else None
        batches = _batches(edges[at], edges[to])
        if seconds >= min_seconds and (batches is None or batches >= min_batches):
            return to
        if to == len(edges) - 1 and seconds + step > max_seconds:  # one more read would lie beyond the bound
            return to
    return None


def _seconds(a: _Edge, b: _Edge) -> float:
    return (b.at_ns - a.at_ns) / 1e9


def _batches(a: _Edge, b: _Edge) -> int | None:
    return b.read.batches - a.read.batches if a.read and b.read else None


def _holds(a: _Edge, b: _Edge, min_batches: int) -> tuple[str, ...]:
    batches = _batches(a, b)
    if batches is None:
        return ("without the server's statistics it is not known how many batches the window holds",)
    if batches < min_batches:
        return (f"holds {batches} batches in {_seconds(a, b):.0f} s, fewer than {min_batches}",)
    return ()


def _before(reads: Sequence[StatsRead], first_sent_ns: int) -> StatsRead | None:
    """The last read before anything was sent, else the first there is."""
    earlier = [read for read in reads if read.middle_ns <= first_sent_ns]
    return earlier[-1] if earlier else reads[0] if reads else None


def _window(
    rows: Rows,
    a: _Edge,
    b: _Edge,
    reads: Sequence[StatsRead],
    generator: Generator,
    point: LoadPoint,
    *,
    kind: Literal["warmup", "measured"] = "measured",
    unstable: bool = False,
    reasons: tuple[str, ...] = (),
) -> Window:
    same = a.read is b.read
    inside = [read for read in reads if a.at_ns < read.middle_ns <= b.at_ns]
    return window(
        rows,
        start_ns=a.at_ns,
        end_ns=b.at_ns,
        generator=generator,
        point=point,
        first=None if same else a.read,
        last=None if same else b.read,
        kind=kind,
        gpu_told=gpu(inside),
        unstable=unstable,
        reasons=reasons + _gpu_coverage(inside),
    )


def _gpu_coverage(reads: Sequence[StatsRead]) -> tuple[str, ...]:
    """Said only where some reads have it and some have not: elsewhere the columns say it."""
    told = sum(read.gpu is not None for read in reads)
    return (f"GPU metrics in {told} of {len(reads)} reads",) if 0 < told < len(reads) else ()
