"""The nouns of Brim: frozen, self-checking records that the stages hand to each other on disk.

Units stand in the names; what can be derived is a property and is never stored. Standard library only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Literal

from brim.errors import InvalidRecord

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]|_(?!_)){0,62}")


def check_name(name: str, what: str) -> None:
    """Names become folders and URLs, and `__` joins model and config: letters, digits, `-` and single `_` only."""
    if not NAME.fullmatch(name) or name.endswith("_"):
        raise InvalidRecord(f"{what} {name!r}: use a-z, 0-9, - and single _ (at most 63, starting with a-z or 0-9)")


def _require(held: bool, message: str) -> None:
    if not held:
        raise InvalidRecord(message)


#: Bytes of one element on the wire by Triton's word for its type; BYTES has none, each element carries its own length.
ELEMENT_BYTES: Mapping[str, int] = {
    "BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2,
    "INT32": 4, "UINT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8,
}  # fmt: skip
#: Precision -> max |difference| / max |reference output| that one engine may be away from another.
PARITY_BOUNDS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-2}

# ---------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output as Triton names it; `shape` is without the batch dimension, -1 = any."""

    name: str
    dtype: str  # Triton's word: FP32, FP16, BF16, UINT8, INT64, BYTES, ...
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far the exported model is from torch: max |difference| / max |torch output| over `batches`."""

    max_relative_error: float
    bound: float
    top1_equal: int  # of `top1_inputs` inputs, on how many both name the same class
    top1_inputs: int
    batches: tuple[int, ...]

    @property
    def held(self) -> bool:
        return self.max_relative_error <= self.bound and self.top1_equal == self.top1_inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity:
    """Arithmetic of one item, counted on the served graph (macs, not FLOPs)."""

    macs: int
    params: int
    activations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What export says of a model: out/models/<name>/card.json."""

    name: str
    source: str  # timm/resnet50, torchvision/resnet50, onnx/<file>, brim/demo
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str
    weights: str  # seeded:<n>, pretrained:<tag>, file:<sha256>
    artifacts: Mapping[str, str]  # file name -> sha256
    recipe: str  # digest of what decides the artifact; equal = need not be exported again
    parity: Parity | None = None
    complexity: Complexity | None = None
    item: str = "image"
    software: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "model")
        _require(bool(self.inputs and self.outputs), f"model {self.name}: inputs and outputs must not be empty")

    @property
    def digest(self) -> str:
        return self.artifacts["model.onnx"]

    @property
    def engine_parameters(self) -> Mapping[str, float]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownServer:
    """A served model whose capacity is known: kind is its module in serve/models/, parameters its own."""

    kind: Literal["null", "image", "sleep"]
    parameters: Mapping[str, float] = field(default_factory=dict)
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    digest: str  # of serve/models/<kind>.py

    @property
    def name(self) -> str:
        return self.kind

    @property
    def item(self) -> str:
        return "image" if self.kind == "image" else "item"

    @property
    def engine_parameters(self) -> Mapping[str, float]:
        return self.parameters


# ---------------------------------------------------------------------------- serving


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """One way to serve a model: a table of serve/configs.toml with `backend` resolved."""

    name: str
    engine: Literal["onnxruntime", "torch", "tensorrt", "known"] = "onnxruntime"
    backend: Literal["auto", "python", "onnxruntime", "tensorrt_plan"] = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    max_batch: int = 4
    preferred_batches: tuple[int, ...] = ()
    queue_delay_us: int = 0
    max_queue_size: int = 0  # 0 = unlimited
    queue_timeout_us: int = 0  # 0 = none
    instances: int = 1
    threads: int = 1  # of the engine, per instance
    engine_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "config")
        _require(self.max_batch >= 1, f"config {self.name}: max_batch is {self.max_batch}, must be >= 1")
        _require(self.instances >= 1, f"config {self.name}: instances is {self.instances}, must be >= 1")
        _require(self.threads >= 1, f"config {self.name}: threads is {self.threads}, must be >= 1")
        for name in ("queue_delay_us", "max_queue_size", "queue_timeout_us"):
            _require(getattr(self, name) >= 0, f"config {self.name}: {name} is {getattr(self, name)}, must be >= 0")
        too_large = [b for b in self.preferred_batches if not 1 <= b <= self.max_batch]
        _require(
            not too_large,
            f"config {self.name}: preferred batch {too_large[:1]} is not between 1 and max_batch {self.max_batch}",
        )

    @property
    def full(self) -> int:
        """Single-item requests in flight that keep every instance's batch full while the next one forms."""
        return 2 * self.max_batch * self.instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model served in one way; its name is its folder in the model repository and its name in Triton."""

    model: ModelCard | KnownServer
    config: ServingConfig

    @property
    def name(self) -> str:
        return f"{self.model.name}__{self.config.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running tritonserver that Brim knows of: out/servers/<id>/server.json."""

    id: str
    mode: Literal["embedded", "docker", "remote"]
    http: str  # http://127.0.0.1:8000
    grpc: str | None
    metrics: str | None
    pid: int | None  # of the process that Brim started; None = not ours to stop
    process_started_s: float | None  # psutil's create_time: with the pid it names one process
    version: str
    variants: tuple[str, ...]
    repository: str | None
    log: str | None
    cpus: tuple[int, ...] = ()  # cores that the server is pinned to; () = not pinned
    container: str | None = None


# ---------------------------------------------------------------------------- load


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLimit:
    """What the project file or the command line allows to be sent to a host that is not loopback."""

    host: str
    max_rate_per_s: float | None = None

    def __post_init__(self) -> None:
        cap = self.max_rate_per_s
        _require(cap is None or cap > 0, f"max_rate_per_s of {self.host} is {cap}, must be > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a target is reached beyond its URL. Paths only: what the files hold is read where it is sent, never kept."""

    tls_ca: str | None = None  # PEM file; None = the system's authorities
    tls_cert: str | None = None
    tls_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # header name -> file that holds its value

    def __post_init__(self) -> None:
        _require(
            (self.tls_cert is None) == (self.tls_key is None), "a client certificate and its key go together, give both"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleStep:
    """A composing model of an ensemble, as its own configuration describes it."""

    model: str
    max_batch: int  # 0 = the model does not batch
    instances: int

    @property
    def full(self) -> int:
        """Items in flight that keep every instance at full batches while the next ones form."""
        return 2 * max(1, self.max_batch) * max(1, self.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A served model wherever it is, as its own server describes it."""

    url: str  # scheme://host:port, never with user info
    model: str
    version: str  # "" = the server's choice
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int  # 0 = the model does not batch
    instances: int
    server_name: str
    server_version: str
    item: str = "item"
    variant: Variant | None = None
    server: Server | None = None  # if Brim started it
    access: Access = Access()
    steps: tuple[EnsembleStep, ...] = ()  # of an ensemble, in the order of its configuration

    @property
    def last_step(self) -> EnsembleStep:
        """Whose batches count: an ensemble's last step (it has none of its own), else the model itself."""
        own = EnsembleStep(model=self.model, max_batch=self.max_batch, instances=self.instances)
        return self.steps[-1] if self.steps else own

    @property
    def full(self) -> int:
        """Items in flight that keep every instance, of every step, at full batches while the next ones form."""
        return max(step.full for step in (*self.steps, self.last_step))


#: How bytes leave.
Sender = Literal["locust_http", "grpc_aio", "tritonclient_http", "tritonclient_grpc", "perf_analyzer"]
Protocol = Literal["http", "grpc"]
Transport = Literal["wire", "shared_memory", "cuda_shared_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """What is asked of a target: a fixed number of requests in flight, or a rate."""

    mode: Literal["closed", "open"] = "closed"
    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals: Literal["constant", "poisson"] | None = None
    seed: int | None = None
    items_per_request: int = 1
    protocol: Protocol = "http"
    transport: Transport = "wire"
    payload: str = "random"
    sender: Sender = "locust_http"
    senders: int = 1
    compression: Literal["none", "gzip"] = "none"

    def __post_init__(self) -> None:
        if self.mode == "closed":
            _require((self.concurrency or 0) >= 1, f"concurrency is {self.concurrency}, must be >= 1")
            _require(self.senders <= (self.concurrency or 0), f"{self.senders} senders cannot share {self.concurrency}")
        else:
            _require((self.rate_per_s or 0) > 0, f"rate is {self.rate_per_s}/s, must be > 0")
        _require(self.items_per_request >= 1, f"items per request is {self.items_per_request}, must be >= 1")
        _require(self.senders >= 1, f"senders is {self.senders}, must be >= 1")


class Status(IntEnum):
    """How a request ended: the `status` byte of a row."""

    OK = 0
    REJECTED = 1  # the server's queue was full or timed the request out (HTTP 503)
    TIMED_OUT = 2  # our own total deadline; latency is censored there
    FAILED = 3
    CANCELLED = 4  # we stopped while it was in flight


#: One request on disk: intended_ns, sent_ns, done_ns, items, worker, status (CLOCK_MONOTONIC, little endian).
ROW = struct.Struct("<qqqHHB3x")
#: Head of requests/<worker>.bin: magic, schema, unix_ns and monotonic_ns read together (the clock anchor).
ROW_HEADER = struct.Struct("<8sH6xqq")
ROW_MAGIC = b"BRIMROWS"
ROW_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """Counters of one composing model of an ensemble: cumulative in a read, their difference in a window."""

    inference_count: int
    execution_count: int
    success_count: int
    queue_ns: int
    busy_ns: int
    instances: int = 1

    def busy_share(self, seconds: float) -> float:
        return self.busy_ns / (self.instances * seconds * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The GPUs together, from Triton's metrics: mean utilization, sums of the rest; None = not told, or no number."""

    utilization: float | None  # 0 to 1
    power_w: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRead:
    """One read of a model's cumulative counters on the server, with the processor time spent until then."""

    before_ns: int  # CLOCK_MONOTONIC when the read was asked for
    after_ns: int  # and when its answer was there
    inference_count: int  # items
    execution_count: int  # batches
    success_count: int  # requests
    fail_count: int
    queue_ns: int
    request_ns: int
    batch_counts: Mapping[str, int]  # batch size -> executions
    busy_ns: int  # input + infer + output, once per execution (batch_stats)
    infer_ns: int
    client_cpu_s: float
    server_cpu_s: float | None  # None where the server is not on this machine
    machine_busy_s: float | None  # of all cores together, since boot
    machine_total_s: float | None
    steps: Mapping[str, StepCount] = field(default_factory=dict)  # an ensemble's composing models
    gpu: Gpu | None = None  # from the metrics endpoint; None = no such endpoint, or it did not answer

    @property
    def middle_ns(self) -> int:
        return (self.before_ns + self.after_ns) // 2

    @property
    def batches(self) -> int:
        """Executions of the model, or of an ensemble's last step: the ensemble itself counts each request as one."""
        return list(self.steps.values())[-1].execution_count if self.steps else self.execution_count


#: What a load was for. `transfer`: the same items another way, with fewer bytes on the wire.
Purpose = Literal["search", "one_more_sender", "transfer", "figure", "cross_check"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """loads.jsonl: one stretch of load at one point by one generator; its rows are those of its workers."""

    index: int
    generator: Literal["locust", "perf_analyzer", "loadgen"]
    purpose: Purpose
    point: LoadPoint
    workers: tuple[int, ...]
    start_ns: int
    end_ns: int  # after the drain
    sent: int
    ok: int
    rejected: int
    timed_out: int
    failed: int
    cancelled: int
    items_ok: int
    client_cpu_s: float
    ended: Literal["finished", "stopped", "crashed", "server_lost"]
    errors: Mapping[str, int] = field(default_factory=dict)  # what the server or the socket said -> how often
    reasons: tuple[str, ...] = ()
    server_start: int = 0  # which start of the server it met, from 0
    request_bytes: int | None = None  # what one request puts on the wire
    judged_until_ns: int | None = None  # where its record was found long enough; what was sent later is not judged
    hosts_busy: float | None = None  # share of the cores of the busiest load host, where that is not this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds over the answered requests of a window; timed-out ones are censored at their limit."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDelta:
    """What the server's own statistics say of a window: the difference of two reads of /stats."""

    read_width_ns: int  # time that the two reads took together
    seconds: float  # between the middles of the two reads
    inference_count: int  # items
    execution_count: int  # batches
    success_count: int
    fail_count: int
    queue_ns: int  # summed over requests
    request_ns: int  # the server's own duration of the successful requests, summed
    batch_counts: Mapping[str, int]  # batch size -> executions
    busy_ns: int  # input + infer + output over executions, from batch_stats
    infer_ns: int
    steps: Mapping[str, StepCount] = field(default_factory=dict)

    @property
    def effective_batch(self) -> float | None:
        executions = sum(self.batch_counts.values())
        items = sum(int(size) * n for size, n in self.batch_counts.items())
        return items / executions if executions else None

    def busy_share(self, instances: int) -> float:
        return self.busy_ns / (instances * self.seconds * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Processor time spent between the two ends of a window."""

    client_s: float
    server_s: float | None
    machine_share: float | None  # busy share of all cores, everything on the machine counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One measured stretch of one load point by one generator, between two completion instants."""

    generator: Literal["locust", "perf_analyzer", "loadgen"]
    point: LoadPoint
    start_ns: int  # CLOCK_MONOTONIC; a completion instant, itself not counted
    end_ns: int  # a completion instant, counted
    kind: Literal["warmup", "measured"] = "measured"
    items_ok: int
    in_flight_start: int
    sent: int
    ok: int
    rejected: int
    timed_out: int
    failed: int
    cancelled: int
    in_flight_end: int
    latency_ms: Latency | None
    server: ServerDelta | None = None
    cpu: Cpu | None = None
    gpu: Gpu | None = None  # mean over the reads of the window
    load: int | None = None  # index of its line in loads.jsonl
    unstable: bool = False
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.end_ns > self.start_ns, f"window from {self.start_ns} to {self.end_ns} ns has no length")
        ended = self.ok + self.rejected + self.timed_out + self.failed + self.cancelled + self.in_flight_end
        _require(
            self.in_flight_start + self.sent == ended,
            f"window does not add up: {self.in_flight_start} in flight + {self.sent} sent, but {ended} accounted for",
        )

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def items_per_s(self) -> float:
        return self.items_ok / self.seconds

    @property
    def not_ok(self) -> int:
        return self.rejected + self.timed_out + self.failed

    @property
    def not_ok_share(self) -> float:
        ended = self.ok + self.not_ok
        return self.not_ok / ended if ended else 1.0

    @property
    def batches(self) -> float | None:
        return float(self.server.execution_count) if self.server else None


# ---------------------------------------------------------------------------- answers


class Verdict(StrEnum):
    """What a measurement is worth; DESIGN's order of precedence is judging.verdict's."""

    SATURATED = "saturated"
    STILL_RISING = "still_rising"
    CLIENT_LIMITED = "client_limited"
    UNSTABLE = "unstable"
    FAILING = "failing"
    SERVER_LOST = "server_lost"
    ABORTED = "aborted"
    POINT = "point"


Limit = Literal["engine", "batcher", "frontend", "preprocessing", "transfer", "network", "host", "client", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule of believability (docs/architecture.md numbers them 1 to 8) held against this measurement."""

    rule: int
    name: str
    state: Literal["held", "broken", "not_applicable"]
    value: float | None = None
    bound: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCheck:
    """The other generator at the same point."""

    generator: str
    items_per_s: float
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One load as the report shows it: what was asked, what came of it, and what that is worth."""

    load: int  # index of its line in loads.jsonl
    purpose: Purpose
    generator: Literal["locust", "perf_analyzer", "loadgen"]
    server_start: int
    at: LoadPoint
    items_per_s: float | None  # mean of its measured windows
    ci95: tuple[float, float] | None  # within this load
    latency_ms: Latency | None
    effective_batch: float | None
    queue_ms: float | None
    server_ms: float | None  # the server's own duration of a request: queue, input, infer, output
    server_busy: float | None
    batch_counts: Mapping[str, int]  # batch size -> executions
    verdict: Literal["steady", "unstable", "failing", "no_window", "server_lost", "crashed"]
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where and with what it was measured: `machine` must be equal for two runs to be compared."""

    machine: Mapping[str, str]
    software: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """run.json: one target measured once; `status` is running until the run closes."""

    id: str
    batch_id: str
    command: str
    target: Target
    environment: Environment
    started_utc: str
    pid: int
    process_started_s: float
    unix_ns: int  # read together with monotonic_ns: the anchor between the two clocks
    monotonic_ns: int
    status: Literal["running", "closed", "crashed"] = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """saturation.json: the answer for one variant, with everything needed to doubt it."""

    run: str
    batch_id: str
    variant: str
    target: str
    backend: str
    server_version: str
    verdict: Verdict
    limited_by: Limit
    reasons: tuple[str, ...]
    items_per_s: float | None
    ci95: tuple[float, float] | None
    ci_kind: Literal["within_run", "between_starts"] | None
    at: LoadPoint
    latency_ms: Latency | None
    effective_batch: float | None
    queue_ms: float | None
    server_busy: float | None
    client_cpu_cores: float | None
    serving_efficiency: float | None
    cross_check: CrossCheck | None
    checks: tuple[Check, ...]
    seconds_spent: float
    item: str = "item"
    in_process_items_per_s: float | None = None
    starts: int = 1  # of the server, over which the figure was taken
    start_means: tuple[float, ...] = ()  # items/s of each
    max_batch: int = 0  # 0 = the model does not batch
    instances: int = 1
    probes: tuple[Probe, ...] = ()
    command: str = ""  # that reproduces it
