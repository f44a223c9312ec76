"""What is sent: the pool of requests as the user asked for it, and the same items with fewer bytes on the wire."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from brim.errors import BrimError
from brim.records import Protocol, Run, Target, Transport
from brim.say import Say
from experiments.measure.request import Request
from loadtest import payload, prepared
from loadtest.control import Control
from loadtest.loopback import copy_rate
from loadtest.regions import Memory, opened

#: Below this the bytes of a request cost no more than the request itself: nothing to show by sending fewer.
TRANSFER_LEAST_BYTES = 32 * 2**10


@dataclass(slots=True, kw_only=True)
class Payloads:
    """Folders of prepared requests, and the shared memory that they refer to."""

    asked: Path
    lighter: Path | None = None
    lighter_transport: Transport = "wire"
    memory: tuple[Memory, ...] = ()
    loopback_bytes_per_s: float | None = None

    def ensure_registered(self) -> None:
        """Before a load: a server that was restarted, or told to forget all regions, knows ours again."""
        for memory in self.memory:
            memory.ensure_registered()


def prepare(
    run: Run, target: Target, request: Request, folder: Path, *, protocol: Protocol, control: Control, held: ExitStack,
    say: Say,
) -> Payloads:  # fmt: skip
    """Write the requests; what lies in shared memory is gone when `held` ends."""

    def written(name: str, transport: Transport) -> tuple[Path, tuple[Memory, ...]]:
        memory = held.enter_context(opened(transport, control, run.id, request.allowed))
        pool = payload.prepare(
            target, folder / "raw" / name, items_per_request=request.items_per_request,
            input_data=request.input_data, seed=request.plan.seed, pool=request.plan.inputs, protocol=protocol,
            compression=request.compression, memory=memory,
        )  # fmt: skip
        return pool, () if memory is None else (memory,)

    asked, memory = written("payload", request.transport)
    made = Payloads(asked=asked, memory=memory)
    on_wire = prepared.load(asked).request_bytes
    plain = request.transport == "wire" and request.client == "brim" and request.cluster is None
    local = target.server is not None and target.server.mode == "embedded"
    if not plain or not local or request.concurrency is not None or on_wire < TRANSFER_LEAST_BYTES:
        return made
    made.loopback_bytes_per_s = copy_rate(on_wire)
    try:
        made.lighter, more = written("payload-shared-memory", "shared_memory")
    except BrimError as error:
        say.detail(f"    not sent over shared memory for comparison: {error}")
        return made
    made.lighter_transport, made.memory = "shared_memory", (*memory, *more)
    return made
