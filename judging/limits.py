"""What keeps a server from being faster: the first limit that the evidence shows, in words. Pure.

Reads `judging.evidence`, writes nothing. Experiments come first, since what they gain refutes every other limit;
then what is measured to be full; then what follows from what waits. What the evidence does not show is `unknown`.
"""

from __future__ import annotations

from brim.records import Limit
from judging.evidence import Evidence, StepLoad
from judging.tolerances import (
    CPU_FULL,
    CPU_ROOM,
    FULL_BATCH,
    FULL_BUSY,
    HELD,
    LINK_FULL,
    OURS,
    PLATEAU,
    QUEUE_WAITS,
    RUNS_ON,
)

Finding = tuple[Limit, str]


def what_limits(found: Evidence) -> tuple[Limit, tuple[str, ...]]:
    """The limit and its reasons: the rule's own first, then what the experiments and the wire showed."""
    shown = next((finding for rule in RULES if (finding := rule(found)) is not None), None)
    limit, words = shown or ("unknown", _undecided(found))
    return limit, tuple(dict.fromkeys((words, *_beside(found))))


# ---------------------------------------------------------------------------- experiments and links


def _client(found: Evidence) -> Finding | None:
    if found.experiment is None or not found.experiment.convicts:
        return None
    return "client", found.experiment.words()


def _network(found: Evidence) -> Finding | None:
    """Only to a remote server, and only where the link's rate is known."""
    sent, link = found.payload_bytes_per_s, found.link_bytes_per_s
    if sent is None or link is None or sent < LINK_FULL * link:
        return None
    return "network", f"network: {_rate(sent)} of the link's {_rate(link)}, {_shares(found)}"


def _transfer(found: Evidence) -> Finding | None:
    if found.transfer is None or not found.transfer.convicts:
        return None
    return "transfer", f"transfer: {found.transfer.words()}; {_shares(found)}"


# ---------------------------------------------------------------------------- what is full


def _preprocessing(found: Evidence) -> Finding | None:
    """An earlier step of an ensemble has no time left, and the last one has."""
    return _earlier_step(found, FULL_BUSY)


def _engine(found: Evidence) -> Finding | None:
    if not _busy(found) or not _full(found):
        return None
    return "engine", f"engine: {_shares(found)}"


def _holding(found: Evidence) -> Finding | None:
    """Requests spend most of their time waiting for a batch that may still grow while nothing runs: a queue delay."""
    if found.pause_ms is None or not found.queue_ms or not found.latency_ms or _full(found):
        return None
    if found.queue_ms < HELD * found.latency_ms or found.pause_ms < HELD * found.queue_ms:
        return None
    return "batcher", (
        f"batcher: requests wait {found.queue_ms:.1f} ms of {found.latency_ms:.1f} while nothing runs for "
        f"{found.pause_ms:.1f} ms before each batch, {_shares(found)}"
    )


def _frontend(found: Evidence) -> Finding | None:
    """The engine has time left, and what stands before it has none: its cores are full, or it alone grows with load."""
    if found.busy_share is None or _busy(found) or found.server_cpu_cores is None or found.server_cores is None:
        return None
    cores = f"server at {found.server_cpu_cores:.2f} of its {found.server_cores:g} cores"
    if found.server_cpu_cores >= CPU_FULL * found.server_cores:
        return "frontend", f"frontend: {cores}, yet {_shares(found)}"
    starved = found.queue_ms is not None and not _queues(found) and _grows(found)
    if not starved or found.experiment is None or not found.experiment.acquits:
        return None
    waits = f"queue {found.queue_ms:.1f} ms, while transport grows with the load"
    return "frontend", f"frontend: {_shares(found)}, {waits}, {cores}"


def _host(found: Evidence) -> Finding | None:
    if found.busy_share is None or _busy(found) or not _cores_full(found) or _by_others(found):
        return None
    return "host", f"host: all cores busy ({found.machine_cpu_share:.0%}), {_shares(found)}, {_cores(found)}"


# ---------------------------------------------------------------------------- what waits


def _steady_preprocessing(found: Evidence) -> Finding | None:
    """The same of a step that always has a next batch waiting."""
    return _earlier_step(found, RUNS_ON) if _queues(found) else None


def _steady_engine(found: Evidence) -> Finding | None:
    """Batches are full and the next always waits; between them passes only what Triton takes to hand one over."""
    if found.busy_share is None or found.busy_share < RUNS_ON or not _full(found) or not _queues(found):
        return None
    return "engine", f"engine: {_shares(found)}, the next batch always waits{_pause(found)}"


def _batcher(found: Evidence) -> Finding | None:
    """Requests wait although batches have room for them or no batch runs."""
    if found.busy_share is None or found.effective_batch is None or not found.fills or not _queues(found):
        return None
    return "batcher", f"batcher: requests wait {found.queue_ms:.1f} ms, yet {_shares(found)}{_pause(found)}"


def _undecided(found: Evidence) -> str:
    if found.busy_share is None or found.effective_batch is None:
        return "unknown: the server gave no statistics of its batches"
    if not found.fills:
        return f"unknown: {found.in_flight:g} in flight cannot fill batches of {max(1, found.max_batch)}"
    return f"unknown: {_shares(found)}, {_cores(found)}; nothing measured decides"


# ---------------------------------------------------------------------------- facts, and their words


def _busy(found: Evidence) -> bool:
    return found.busy_share is not None and found.busy_share >= FULL_BUSY


def _earlier_step(found: Evidence, busy: float) -> Finding | None:
    if not found.steps or found.steps[-1].busy_share >= busy:
        return None
    full = next((step for step in found.steps[:-1] if step.busy_share >= busy), None)
    if full is None:
        return None
    return "preprocessing", f"preprocessing: {_step(full)}, while {_step(found.steps[-1])}"


def _full(found: Evidence) -> bool:
    """Batches as large as they may be, or as the engine profits from."""
    if found.effective_batch is None:
        return False
    return found.effective_batch >= FULL_BATCH * (found.full_batch or max(1, found.max_batch))


def _queues(found: Evidence) -> bool:
    return bool(found.queue_ms and found.latency_ms and found.queue_ms >= QUEUE_WAITS * found.latency_ms)


def _cores_full(found: Evidence) -> bool:
    return found.machine_cpu_share is not None and found.machine_cpu_share >= CPU_ROOM


def _by_others(found: Evidence) -> bool:
    """The cores that the server may use are full, but neither with its own work nor with the senders'."""
    if found.server_cores is None or found.server_cpu_cores is None or not _cores_full(found):
        return False
    return found.server_cpu_cores + (found.client_cpu_cores or 0.0) < OURS * found.server_cores


def _grows(found: Evidence) -> bool:
    outside, lower = found.outside_ms, found.outside_ms_lower
    return outside is not None and lower is not None and outside > lower * (1 + PLATEAU)


def _beside(found: Evidence) -> list[str]:
    """What the experiments showed, and how much of what a plain copy could do the payload took."""
    said = [found.experiment.words() if found.experiment else "no further sender was tried"]
    if _by_others(found):
        said.append(f"machine CPU {found.machine_cpu_share:.0%}, mostly of other processes; {_cores(found)}")
    if found.transfer is not None and not found.transfer.convicts:
        said.append(found.transfer.words())
    if found.payload_bytes_per_s is not None and found.loopback_bytes_per_s is not None:
        said.append(f"payload {_rate(found.payload_bytes_per_s)} of {_rate(found.loopback_bytes_per_s)} loopback copy")
    if found.outside_share is not None:
        said.append(f"transport {found.outside_share:.0%} of the latency{_growth(found)}")
    return said


def _growth(found: Evidence) -> str:
    if found.outside_ms is None or found.outside_ms_lower is None:
        return ""
    return f" (from {found.outside_ms_lower:.1f} to {found.outside_ms:.1f} ms as the load grew)"


def _pause(found: Evidence) -> str:
    return f", {found.pause_ms:.2f} ms pass between batches" if found.pause_ms else ""


def _shares(found: Evidence) -> str:
    busy = "?" if found.busy_share is None else f"{found.busy_share:.0%}"
    batch = "?" if found.effective_batch is None else f"{found.effective_batch:.1f}"
    profits = f" (the engine profits up to {found.full_batch:g})" if found.full_batch else ""
    return f"busy {busy}, batches {batch} of {max(1, found.max_batch)}{profits}"


def _step(step: StepLoad) -> str:
    batch = "" if step.effective_batch is None else f", batches {step.effective_batch:.1f}"
    return f"{step.name} busy {step.busy_share:.0%}{batch}"


def _cores(found: Evidence) -> str:
    server = "?" if found.server_cpu_cores is None else f"{found.server_cpu_cores:.2f}"
    client = "?" if found.client_cpu_cores is None else f"{found.client_cpu_cores:.2f}"
    return f"CPU-seconds a second: server {server}, client {client}"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f} GB/s" if bytes_per_s >= 1e8 else f"{bytes_per_s / 1e6:.1f} MB/s"


#: In this order: what was shown by changing one thing, what has no time or room left, what waits without need.
RULES = (
    _client,
    _network,
    _transfer,
    _preprocessing,
    _engine,
    _holding,
    _frontend,
    _host,
    _steady_preprocessing,
    _steady_engine,
    _batcher,
)
