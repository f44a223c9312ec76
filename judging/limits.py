"""What keeps a server from being faster, decided from the evidence there is and never guessed.

Reads windows, writes nothing. Transfer, network and preprocessing need experiments of their own and are never
named without them: what the evidence does not show is `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median

from brim.records import Limit, Window
from judging.tolerances import CPU_FULL, CPU_ROOM, FULL_BATCH, FULL_BUSY, PLATEAU, QUEUE_WAITS
from judging.verdict import gain

Finding = tuple[Limit, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderExperiment:
    """The same requests in flight, spread over one more sender process."""

    senders: int  # before the further one
    gain: float
    machine_cpu_share: float | None  # while the further one ran; None = another machine's, or unknown
    pinned_apart: bool

    @property
    def convicts(self) -> bool:
        """A further sender got more out of the server: the client was the limit."""
        return self.gain > PLATEAU

    @property
    def acquits(self) -> bool:
        """It got no more, and had the room to: idle cores, or cores of its own."""
        room = self.pinned_apart or (self.machine_cpu_share is not None and self.machine_cpu_share < CPU_ROOM)
        return not self.convicts and room

    def words(self) -> str:
        if self.convicts:
            return f"another sender gained {self.gain:+.1%}: {self.senders} sent too slowly"
        changed = f"another sender changed nothing ({self.gain:+.1%})"
        if self.acquits:
            return changed
        busy = "unknown" if self.machine_cpu_share is None else f"{self.machine_cpu_share:.0%}"
        return f"{changed}, but that proves nothing: machine CPU {busy}, sender and server not pinned apart"


def sender_experiment(one: Sequence[Window], more: Sequence[Window], *, pinned_apart: bool = False) -> SenderExperiment:
    """Compare the medians of windows with some senders and with one more at the same total concurrency."""
    shares = [w.cpu.machine_share for w in more if w.cpu is not None and w.cpu.machine_share is not None]
    return SenderExperiment(
        senders=one[0].point.senders,
        gain=gain(median(w.items_per_s for w in one), median(w.items_per_s for w in more)),
        machine_cpu_share=max(shares) if shares else None,
        pinned_apart=pinned_apart,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a load point when its limit is judged; None = not known."""

    in_flight: float | None  # items, of a closed loop
    max_batch: int  # 0 = the model does not batch
    instances: int
    full_batch: float | None = None  # the largest batch that the engine profits from, where that was measured
    busy_share: float | None = None
    effective_batch: float | None = None
    queue_ms: float | None = None  # of a request
    latency_ms: float | None = None
    outside_ms: float | None = None  # client latency less the server's own request time
    outside_ms_lower: float | None = None  # the same with fewer in flight
    machine_cpu_share: float | None = None
    server_cpu_cores: float | None = None
    server_cores: float | None = None  # how many it may use
    client_cpu_cores: float | None = None
    experiment: SenderExperiment | None = None

    @property
    def fills(self) -> bool:
        """Enough is in flight for full batches on every instance while the next ones form."""
        return self.in_flight is None or self.in_flight >= 2 * max(1, self.max_batch) * self.instances


def evidence(
    windows: Sequence[Window],
    *,
    max_batch: int,
    instances: int,
    lower: Sequence[Window] = (),
    experiment: SenderExperiment | None = None,
    server_cores: float | None = None,
    full_batch: float | None = None,
) -> Evidence:
    """Put together what the windows of one point, and those of a lower one, show."""
    point = windows[0].point
    return Evidence(
        in_flight=None if point.concurrency is None else float(point.concurrency * point.items_per_request),
        max_batch=max_batch,
        instances=instances,
        full_batch=full_batch,
        busy_share=_mean(windows, lambda w: w.server.busy_share(instances) if w.server else None),
        effective_batch=_mean(windows, lambda w: w.server.effective_batch if w.server else None),
        queue_ms=_mean(windows, queue_ms),
        latency_ms=_mean(windows, lambda w: w.latency_ms.mean if w.latency_ms else None),
        outside_ms=_mean(windows, outside_ms),
        outside_ms_lower=_mean(lower, outside_ms),
        machine_cpu_share=_mean(windows, lambda w: w.cpu.machine_share if w.cpu else None),
        server_cpu_cores=_mean(windows, server_cpu_cores),
        server_cores=server_cores,
        client_cpu_cores=_mean(windows, client_cpu_cores),
        experiment=experiment,
    )


def queue_ms(window: Window) -> float | None:
    """Mean wait of a request in the server's queue."""
    server = window.server
    return server.queue_ns / server.success_count / 1e6 if server and server.success_count else None


def outside_ms(window: Window) -> float | None:
    """Mean latency that the server's own clock does not see: transport, HTTP in front of it, the client."""
    server = window.server
    if server is None or not server.success_count or window.latency_ms is None:
        return None
    return window.latency_ms.mean - server.request_ns / server.success_count / 1e6


def server_cpu_cores(window: Window) -> float | None:
    if window.cpu is None or window.cpu.server_s is None or window.server is None:
        return None
    return window.cpu.server_s / window.server.seconds


def client_cpu_cores(window: Window) -> float | None:
    return window.cpu.client_s / window.server.seconds if window.cpu and window.server else None


def what_limits(found: Evidence) -> tuple[Limit, tuple[str, ...]]:
    """The first limit that the evidence shows, with its reasons in words; `unknown` says what is missing."""
    experiment = found.experiment
    sender = (experiment.words() if experiment else "no further sender was tried",)
    if experiment is not None and experiment.convicts:
        return "client", sender
    for rule in (_engine, _host, _batcher, _frontend):
        if (shown := rule(found)) is not None:
            return shown[0], (shown[1], *sender)
    return "unknown", (_undecided(found), *sender)


def _engine(found: Evidence) -> Finding | None:
    if not _busy(found) or not _full(found):
        return None
    return "engine", f"engine: {_shares(found)}"


def _host(found: Evidence) -> Finding | None:
    if found.busy_share is None or _busy(found) or (found.machine_cpu_share or 0.0) < CPU_FULL:
        return None
    return "host", f"host: all cores busy ({found.machine_cpu_share:.0%}), {_shares(found)}, {_cores(found)}"


def _batcher(found: Evidence) -> Finding | None:
    """Requests wait although the batches that run have room for them."""
    if found.effective_batch is None or not found.fills or _full(found) or not _queues(found):
        return None
    return "batcher", f"batcher: requests wait {found.queue_ms:.1f} ms, yet {_shares(found)}"


def _frontend(found: Evidence) -> Finding | None:
    """The engine starves, nothing waits, and time before it grows with the load on a server out of cores."""
    if found.busy_share is None or _busy(found) or found.queue_ms is None or _queues(found):
        return None
    outside, lower = found.outside_ms, found.outside_ms_lower
    if outside is None or lower is None or outside <= lower * (1 + PLATEAU):
        return None
    if found.server_cpu_cores is None or found.server_cores is None:
        return None
    if found.server_cpu_cores < CPU_FULL * found.server_cores:
        return None
    return "frontend", (
        f"frontend: {_shares(found)}, queue {found.queue_ms:.1f} ms, time outside the server's requests grew "
        f"from {lower:.1f} to {outside:.1f} ms, "
        f"server at {found.server_cpu_cores:.2f} of {found.server_cores:g} cores"
    )


def _undecided(found: Evidence) -> str:
    if found.busy_share is None or found.effective_batch is None:
        return "unknown: the server gave no statistics of its batches"
    if not found.fills:
        return f"unknown: {found.in_flight:g} in flight cannot fill batches of {max(1, found.max_batch)}"
    return f"unknown: {_shares(found)}, {_cores(found)}; nothing measured decides"


def _busy(found: Evidence) -> bool:
    return found.busy_share is not None and found.busy_share >= FULL_BUSY


def _full(found: Evidence) -> bool:
    """Batches as large as they may be, or as the engine profits from."""
    if found.effective_batch is None:
        return False
    return found.effective_batch >= FULL_BATCH * (found.full_batch or max(1, found.max_batch))


def _queues(found: Evidence) -> bool:
    return bool(found.queue_ms and found.latency_ms and found.queue_ms >= QUEUE_WAITS * found.latency_ms)


def _shares(found: Evidence) -> str:
    busy = "?" if found.busy_share is None else f"{found.busy_share:.0%}"
    batch = "?" if found.effective_batch is None else f"{found.effective_batch:.1f}"
    profits = f" (the engine profits up to {found.full_batch:g})" if found.full_batch else ""
    return f"busy {busy}, batches {batch} of {max(1, found.max_batch)}{profits}"


def _cores(found: Evidence) -> str:
    server = "?" if found.server_cpu_cores is None else f"{found.server_cpu_cores:.2f}"
    client = "?" if found.client_cpu_cores is None else f"{found.client_cpu_cores:.2f}"
    return f"CPU-seconds a second: server {server}, client {client}"


def _mean(windows: Sequence[Window], of: Callable[[Window], float | None]) -> float | None:
    values = [value for value in map(of, windows) if value is not None]
    return mean(values) if values else None
