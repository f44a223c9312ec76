"""Models and servers of known capacity: what is served, in which way, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from brim.records.naming import check_name, require

#: Bytes of one element on the wire by Triton's word for its type; BYTES has none, each element carries its own length.
ELEMENT_BYTES: Mapping[str, int] = {
    "BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2,
    "INT32": 4, "UINT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8,
}  # fmt: skip
#: Precision -> max |difference| / max |reference output| that one engine may be away from another.
PARITY_BOUNDS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-2}


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
        require(bool(self.inputs and self.outputs), f"model {self.name}: inputs and outputs must not be empty")

    @property
    def digest(self) -> str:
        return self.artifacts["model.onnx"]

    @property
    def engine_parameters(self) -> Mapping[str, float]:
        return {}


#: Modules of serve/models/ that are servers of known capacity.
KnownKind = Literal["null", "image", "sleep", "affine", "exponential", "contended", "optimum", "stall", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownServer:
    """A served model whose capacity is known: kind is its module in serve/models/, parameters its own."""

    kind: KnownKind
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
        require(self.max_batch >= 1, f"config {self.name}: max_batch is {self.max_batch}, must be >= 1")
        require(self.instances >= 1, f"config {self.name}: instances is {self.instances}, must be >= 1")
        require(self.threads >= 1, f"config {self.name}: threads is {self.threads}, must be >= 1")
        for name in ("queue_delay_us", "max_queue_size", "queue_timeout_us"):
            require(getattr(self, name) >= 0, f"config {self.name}: {name} is {getattr(self, name)}, must be >= 0")
        too_large = [b for b in self.preferred_batches if not 1 <= b <= self.max_batch]
        require(
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
