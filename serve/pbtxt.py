"""A Variant as Triton's config.pbtxt, through Triton's own protobuf messages, so that no field can be misspelt.

Pure: variant in, text out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]  # its stubs are a package apart
from tritonclient.grpc.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelWarmup,
)

from brim import codec
from brim.errors import UsageError, did_you_mean
from brim.records import ServingConfig, Tensor, Variant

#: Parameters in which a served model says what Brim wrote it for; GET /v2/models/<variant>/config gives them back.
CONFIG, PARAMETERS, DIGEST, DEVICE = "brim.config", "brim.parameters", "brim.digest", "brim.device"

#: KServe's word for a type where it is not the name of Triton's enumeration without TYPE_.
_ENUM_NAMES = {"BYTES": "STRING"}


def config_text(variant: Variant, *, gpu: bool = False) -> str:
    """The whole config.pbtxt, nothing left for Triton to complete; `gpu`: the engine runs on an NVIDIA GPU."""
    config = variant.config
    message = ModelConfig(
        name=variant.name,
        backend=config.backend,
        default_model_filename="model.py" if config.backend == "python" else "model.onnx",
        max_batch_size=config.max_batch,
        input=[_tensor(ModelInput, tensor) for tensor in variant.model.inputs],
        output=[_tensor(ModelOutput, tensor) for tensor in variant.model.outputs],
        instance_group=[ModelInstanceGroup(kind=_kind(config, gpu), count=config.instances)],
        model_warmup=_warmups(variant),
        parameters={key: ModelParameter(string_value=value) for key, value in _parameters(variant, gpu).items()},
    )
    _set_batching(message.dynamic_batching, config)
    text: str = text_format.MessageToString(message)
    return text


def _tensor(kind: Any, tensor: Tensor) -> Any:
    return kind(name=tensor.name, data_type=_data_type(tensor), dims=tensor.shape)


def _data_type(tensor: Tensor) -> int:
    name = f"TYPE_{_ENUM_NAMES.get(tensor.dtype, tensor.dtype)}"
    numbers = {key: number for key, number in DataType.items() if number != DataType.TYPE_INVALID}
    if name not in numbers:
        known = [key.removeprefix("TYPE_") for key in numbers]
        raise UsageError(
            f"tensor {tensor.name}: Triton has no type {tensor.dtype!r}; {did_you_mean(tensor.dtype, known)}"
        )
    return int(numbers[name])


def _kind(config: ServingConfig, gpu: bool) -> int:
    """Where a native backend puts its sessions; the python backend only passes it on, brim.device tells its engine."""
    native_on_gpu = gpu and config.backend != "python"
    return int(ModelInstanceGroup.KIND_GPU if native_on_gpu else ModelInstanceGroup.KIND_CPU)


def _set_batching(batching: Any, config: ServingConfig) -> None:
    """Written for max_batch 1 too, where every batch has one item.

    Without it Triton has no queue policy, and b1 would not pass through the scheduler of what it is compared with.
    """
    batching.preferred_batch_size.extend(config.preferred_batches)
    batching.max_queue_delay_microseconds = config.queue_delay_us
    policy = batching.default_queue_policy
    policy.timeout_action = policy.REJECT
    policy.max_queue_size = config.max_queue_size
    policy.default_timeout_microseconds = config.queue_timeout_us


def _warmups(variant: Variant) -> list[Any]:
    """A batch of one and a full one on every instance before it is ready; Triton's statistics count them too.

    Zeros, since Triton's random_data is random bytes: read as floats, many are denormal or not a number.
    """
    if any(size < 1 for tensor in variant.model.inputs for size in tensor.shape):
        return []  # a size that only the client knows
    inputs = {
        tensor.name: ModelWarmup.Input(data_type=_data_type(tensor), dims=tensor.shape, zero_data=True)
        for tensor in variant.model.inputs
    }
    sizes = {1: "one", variant.config.max_batch: "full"}
    return [ModelWarmup(name=name, batch_size=size, count=1, inputs=inputs) for size, name in sizes.items()]


def _parameters(variant: Variant, gpu: bool) -> Mapping[str, str]:
    """What was asked for, so that a server tells it itself, and what model.py or the native backend needs."""
    config = variant.config
    told = {
        CONFIG: codec.to_json(config),
        PARAMETERS: json.dumps(codec.to_plain(variant.model.engine_parameters)),
        DIGEST: variant.model.digest,
    }
    if config.backend == "python":
        return {**told, DEVICE: "cuda" if gpu else "cpu"}
    return {
        **told,
        "intra_op_thread_count": str(config.threads),
        "inter_op_thread_count": "1",
        **config.engine_options,
    }
