"""What is known of a load point when its limit is judged: windows and experiments put together. Pure.

Reads windows; writes nothing. `judging.limits` decides by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median

from brim.records import ServerDelta, StepCount, Window
from judging.tolerances import CPU_ROOM, PLATEAU
from judging.verdict import gain

# ---------------------------------------------------------------------------- experiments


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderExperiment:
    """The same requests in flight, spread over one more sender process."""

    senders: int  # before the further one
    gain: float
    machine_cpu_share: float | None  # while the further one ran; None = another machine's, or unknown
    pinned_apart: bool
    own_cpu_share: float | None = None  # of the senders' own cores, where they are pinned apart

    @property
    def convicts(self) -> bool:
        """A further sender got more out of the server: the client was the limit."""
        return self.gain > PLATEAU

    @property
    def acquits(self) -> bool:
        """It got no more, and had the room to: idle cores, or cores of its own that were not full either."""
        own_room = self.pinned_apart and (self.own_cpu_share is None or self.own_cpu_share < CPU_ROOM)
        room = own_room or (self.machine_cpu_share is not None and self.machine_cpu_share < CPU_ROOM)
        return not self.convicts and room

    def words(self) -> str:
        if self.convicts:
            return f"another sender gained {self.gain:+.1%}: {self.senders} sent too slowly"
        changed = f"another sender changed nothing ({self.gain:+.1%})"
        if self.acquits:
            return changed
        if self.pinned_apart and self.own_cpu_share is not None:
            return f"{changed}, but that proves nothing: the senders' own cores were {self.own_cpu_share:.0%} busy"
        busy = "unknown" if self.machine_cpu_share is None else f"{self.machine_cpu_share:.0%}"
        return f"{changed}, but that proves nothing: machine CPU {busy}, sender and server not pinned apart"


def sender_experiment(one: Sequence[Window], more: Sequence[Window], *, own_cores: int = 0) -> SenderExperiment:
    """Compare the medians of windows with some senders and with one more at the same total concurrency.

    `own_cores`: how many the senders are pinned to, if the server may use none of them; else 0.
    """
    machine = [w.cpu.machine_share for w in more if w.cpu is not None and w.cpu.machine_share is not None]
    client = [cores for cores in map(client_cpu_cores, more) if cores is not None]
    return SenderExperiment(
        senders=one[0].point.senders,
        gain=gain(median(w.items_per_s for w in one), median(w.items_per_s for w in more)),
        machine_cpu_share=max(machine) if machine else None,
        pinned_apart=own_cores > 0,
        own_cpu_share=max(client) / own_cores if own_cores and client else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferExperiment:
    """The same items at the same concurrency another way, with fewer bytes on the wire."""

    gain: float
    how: str  # over shared memory | with a quarter of the bytes

    @property
    def convicts(self) -> bool:
        """The engine could do more: moving the bytes was the limit."""
        return self.gain > PLATEAU

    def words(self) -> str:
        gained = f"gained {self.gain:+.1%}" if self.convicts else f"gained nothing ({self.gain:+.1%})"
        return f"the same items {self.how} {gained}"


# ---------------------------------------------------------------------------- evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """How busy one composing model of an ensemble was."""

    name: str
    busy_share: float
    effective_batch: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a load point; None = not known. Of an ensemble, the engine is its last step."""

    in_flight: float | None  # items, of a closed loop
    max_batch: int  # 0 = the model does not batch
    instances: int
    full_batch: float | None = None  # the largest batch that the engine profits from, where that was measured
    busy_share: float | None = None
    effective_batch: float | None = None
    pause_ms: float | None = None  # a batch, in which nothing ran; at least
    queue_ms: float | None = None  # of a request
    latency_ms: float | None = None
    outside_share: float | None = None  # of the latency that the server's own clock does not see
    outside_ms: float | None = None
    outside_ms_lower: float | None = None  # the same with fewer in flight
    machine_cpu_share: float | None = None
    server_cpu_cores: float | None = None
    server_cores: float | None = None  # how many it may use
    client_cpu_cores: float | None = None
    payload_bytes_per_s: float | None = None
    loopback_bytes_per_s: float | None = None  # what a plain copy of such payloads reaches
    link_bytes_per_s: float | None = None  # of the network to a remote server
    steps: tuple[StepLoad, ...] = ()
    experiment: SenderExperiment | None = None
    transfer: TransferExperiment | None = None

    @property
    def fills(self) -> bool:
        """Enough is in flight for full batches on every instance while the next ones form."""
        return self.in_flight is None or self.in_flight >= 2 * max(1, self.max_batch) * self.instances


def of_point(
    windows: Sequence[Window],
    *,
    max_batch: int,
    instances: int,
    lower: Sequence[Window] = (),
    higher: Sequence[Window] = (),
    experiment: SenderExperiment | None = None,
    transfer: TransferExperiment | None = None,
    server_cores: float | None = None,
    local: bool = True,
    full_batch: float | None = None,
    request_bytes: int | None = None,
    loopback_bytes_per_s: float | None = None,
    link_bytes_per_s: float | None = None,
) -> Evidence:
    """What the windows of one point show, and how time outside the server grew from `lower` to `higher`.

    `local`: the server is on this machine, so that the cores that were watched are its own, too.
    """
    point = windows[0].point
    latency_ms = _mean(windows, lambda w: w.latency_ms.mean if w.latency_ms else None)
    outside = _mean(windows, outside_ms)
    requests_per_s = mean(w.ok / w.seconds for w in windows)
    return Evidence(
        in_flight=None if point.concurrency is None else float(point.concurrency * point.items_per_request),
        max_batch=max_batch,
        instances=instances,
        full_batch=full_batch,
        busy_share=_mean(windows, lambda w: busy_share(w, instances)),
        effective_batch=_mean(windows, effective_batch),
        pause_ms=_mean(windows, pause_ms),
        queue_ms=_mean(windows, queue_ms),
        latency_ms=latency_ms,
        outside_share=outside / latency_ms if outside is not None and latency_ms else None,
        outside_ms=_mean(higher or windows, outside_ms),
        outside_ms_lower=_mean(lower, outside_ms),
        machine_cpu_share=_mean(windows, lambda w: w.cpu.machine_share if w.cpu else None) if local else None,
        server_cpu_cores=_mean(windows, server_cpu_cores),
        server_cores=server_cores,
        client_cpu_cores=_mean(windows, client_cpu_cores),
        payload_bytes_per_s=None if request_bytes is None else requests_per_s * request_bytes,
        loopback_bytes_per_s=loopback_bytes_per_s,
        link_bytes_per_s=None if local else link_bytes_per_s,
        steps=_steps(windows),
        experiment=experiment,
        transfer=transfer,
    )


# ---------------------------------------------------------------------------- of one window


def busy_share(window: Window, instances: int) -> float | None:
    """Busy share of the model, or of an ensemble's last step; the ensemble's own counters add up its steps' time."""
    server = window.server
    if server is None:
        return None
    return _last(server).busy_share(server.seconds) if server.steps else server.busy_share(instances)


def effective_batch(window: Window) -> float | None:
    """Mean batch of the model, or of an ensemble's last step; the ensemble itself counts each request as a batch."""
    server = window.server
    if server is None:
        return None
    return _mean_batch(_last(server)) if server.steps else server.effective_batch


def queue_ms(window: Window) -> float | None:
    """Mean wait of a request in the server's queue, or in the queues of all steps of an ensemble."""
    server = window.server
    if server is None or not server.success_count:
        return None
    if not server.steps:
        return server.queue_ns / server.success_count / 1e6
    return sum(step.queue_ns / step.success_count / 1e6 for step in server.steps.values() if step.success_count)


def pause_ms(window: Window) -> float | None:
    """Time per batch in which no instance can have worked: what is left if their work had never overlapped."""
    server = window.server
    if server is None or server.steps or not server.execution_count:
        return None
    return max(0.0, server.seconds * 1e3 - server.busy_ns / 1e6) / server.execution_count


def server_ms(window: Window) -> float | None:
    """Mean duration of a request by the server's own clock: queue, input, infer, output."""
    server = window.server
    return server.request_ns / server.success_count / 1e6 if server and server.success_count else None


def outside_ms(window: Window) -> float | None:
    """Mean latency that the server's own clock does not see: transport, HTTP in front of it, the client."""
    inside = server_ms(window)
    return None if inside is None or window.latency_ms is None else window.latency_ms.mean - inside


def server_cpu_cores(window: Window) -> float | None:
    if window.cpu is None or window.cpu.server_s is None or window.server is None:
        return None
    return window.cpu.server_s / window.server.seconds


def client_cpu_cores(window: Window) -> float | None:
    return window.cpu.client_s / window.server.seconds if window.cpu and window.server else None


def _steps(windows: Sequence[Window]) -> tuple[StepLoad, ...]:
    """Each step over all windows that hold it, in the order of the ensemble."""
    servers = [w.server for w in windows if w.server]
    names = dict.fromkeys(name for server in servers for name in server.steps)
    return tuple(_step(name, [server for server in servers if name in server.steps]) for name in names)


def _step(name: str, servers: Sequence[ServerDelta]) -> StepLoad:
    batches = [batch for server in servers if (batch := _mean_batch(server.steps[name])) is not None]
    return StepLoad(
        name=name,
        busy_share=mean(server.steps[name].busy_share(server.seconds) for server in servers),
        effective_batch=mean(batches) if batches else None,
    )


def _last(server: ServerDelta) -> StepCount:
    return list(server.steps.values())[-1]


def _mean_batch(step: StepCount) -> float | None:
    return step.inference_count / step.execution_count if step.execution_count else None


def _mean(windows: Sequence[Window], of: Callable[[Window], float | None]) -> float | None:
    values = [value for value in map(of, windows) if value is not None]
    return mean(values) if values else None
