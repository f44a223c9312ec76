"""config.pbtxt, parsed back into Triton's message: what is written there and what is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # its stubs are a package apart
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from brim import codec
from brim.errors import UsageError
from brim.records import ModelCard, ServingConfig, Tensor, Variant
from serve.known import known_server
from serve.pbtxt import config_text


def card(inputs: Sequence[Tensor]) -> ModelCard:
    return ModelCard(
        name="net",
        source="brim/demo",
        inputs=tuple(inputs),
        outputs=(Tensor(name="logits", dtype="FP32", shape=(1000,)),),
        precision="fp32",
        weights="seeded:0",
        artifacts={"model.onnx": "ab" * 32},
        recipe="r",
    )


IMAGE = Tensor(name="x", dtype="FP32", shape=(3, 8, 8))
PYTHON = ServingConfig(name="b4", backend="python")
NATIVE = ServingConfig(name="b4", backend="onnxruntime")


def parsed(config: ServingConfig, inputs: Sequence[Tensor] = (IMAGE,), *, gpu: bool = False) -> Any:
    return text_format.Parse(config_text(Variant(model=card(inputs), config=config), gpu=gpu), ModelConfig())


def test_name_backend_batch_and_tensors_are_those_of_the_variant() -> None:
    message = parsed(PYTHON)
    assert (message.name, message.backend, message.max_batch_size) == ("net__b4", "python", 4)
    assert message.default_model_filename == "model.py"
    assert [(i.name, i.data_type, list(i.dims)) for i in message.input] == [("x", DataType.TYPE_FP32, [3, 8, 8])]
    assert [(o.name, o.data_type, list(o.dims)) for o in message.output] == [("logits", DataType.TYPE_FP32, [1000])]


@pytest.mark.parametrize(("dtype", "enum"), [("BYTES", "TYPE_STRING"), ("BF16", "TYPE_BF16"), ("UINT8", "TYPE_UINT8")])
def test_types_are_named_as_triton_numbers_them(dtype: str, enum: str) -> None:
    message = parsed(PYTHON, [replace(IMAGE, dtype=dtype)])
    assert message.input[0].data_type == DataType.Value(enum)


@pytest.mark.parametrize("dtype", ["FLOAT", "INVALID"])
def test_a_type_that_triton_does_not_have_is_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match=f"tensor x: Triton has no type '{dtype}'"):
        parsed(PYTHON, [replace(IMAGE, dtype=dtype)])


def test_queue_and_batching_are_written_as_configured() -> None:
    config = replace(
        PYTHON, preferred_batches=(2, 4), queue_delay_us=500, max_queue_size=64, queue_timeout_us=9000, instances=3
    )
    message = parsed(config)
    batching = message.dynamic_batching
    assert list(batching.preferred_batch_size) == [2, 4]
    assert batching.max_queue_delay_microseconds == 500
    assert batching.default_queue_policy.max_queue_size == 64
    assert batching.default_queue_policy.default_timeout_microseconds == 9000
    assert batching.default_queue_policy.timeout_action == batching.default_queue_policy.REJECT
    assert [(g.kind, g.count) for g in message.instance_group] == [(ModelInstanceGroup.KIND_CPU, 3)]


def test_a_config_without_batching_still_has_the_queue_of_the_others() -> None:
    message = parsed(replace(PYTHON, max_batch=1, max_queue_size=7))
    assert message.max_batch_size == 1
    assert message.HasField("dynamic_batching")
    assert message.dynamic_batching.default_queue_policy.max_queue_size == 7


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, [1]), (4, [1, 4])])
def test_one_item_and_a_full_batch_are_warmed_up_with_zeros(max_batch: int, sizes: list[int]) -> None:
    warmups = parsed(replace(PYTHON, max_batch=max_batch)).model_warmup
    assert [warmup.batch_size for warmup in warmups] == sizes
    for warmup in warmups:
        assert warmup.inputs["x"].zero_data
        assert list(warmup.inputs["x"].dims) == [3, 8, 8]


def test_a_size_that_only_the_client_knows_is_not_warmed_up() -> None:
    assert not parsed(PYTHON, [replace(IMAGE, shape=(3, -1, -1))]).model_warmup


def test_the_serving_config_is_told_back_whole_with_the_models_digest() -> None:
    parameters = parsed(PYTHON).parameters
    assert codec.from_json(ServingConfig, parameters["brim.config"].string_value, where="pbtxt") == PYTHON
    assert parameters["brim.digest"].string_value == "ab" * 32


def test_a_known_server_gets_its_own_parameters() -> None:
    sleep = known_server("sleep", {"service_ms": 20})
    config = ServingConfig(name="b4", engine="known", backend="python")
    message = text_format.Parse(config_text(Variant(model=sleep, config=config)), ModelConfig())
    assert json.loads(message.parameters["brim.parameters"].string_value) == {"elements": 16, "service_ms": 20}


def test_the_native_backend_gets_its_threads_by_its_own_names_and_the_engine_options_as_they_are() -> None:
    message = parsed(replace(NATIVE, threads=3, engine_options={"cudnn_conv_algo_search": "1"}))
    told = {key: parameter.string_value for key, parameter in message.parameters.items()}
    assert told["intra_op_thread_count"] == "3"
    assert told["inter_op_thread_count"] == "1"
    assert told["cudnn_conv_algo_search"] == "1"
    assert message.default_model_filename == "model.onnx"
    assert message.backend == "onnxruntime"


@pytest.mark.parametrize(
    ("config", "gpu", "kind"),
    [(NATIVE, True, "KIND_GPU"), (NATIVE, False, "KIND_CPU"), (PYTHON, True, "KIND_CPU"), (PYTHON, False, "KIND_CPU")],
)
def test_only_native_sessions_are_placed_by_the_kind_of_instance(config: ServingConfig, gpu: bool, kind: str) -> None:
    assert parsed(config, gpu=gpu).instance_group[0].kind == ModelInstanceGroup.Kind.Value(kind)


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_python_engine_is_told_its_device(gpu: bool, device: str) -> None:
    assert parsed(PYTHON, gpu=gpu).parameters["brim.device"].string_value == device
