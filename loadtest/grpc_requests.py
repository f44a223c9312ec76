"""Tensors to the bytes of a KServe v2 ModelInferRequest, and a ModelInferResponse's bytes back to tensors.

Pure: reads and writes nothing. Tensors travel as on HTTP (request_bytes.wire), one entry of raw_input_contents each, or
stay in a shared-memory region, of which the message then names the part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are a package apart
from tritonclient.grpc import service_pb2 as messages

from brim.errors import UsageError
from loadtest import request_bytes
from loadtest.request_bytes import Input, Part

MESSAGE_MAX_BYTES = 2**31 - 1  # protobuf's limit, and so gRPC's


def infer_message(model: str, version: str, inputs: Sequence[Input], outputs: Sequence[str]) -> bytes:
    """The whole serialized request; UsageError if it is longer than a gRPC message can be."""
    check_size(model, sum(len(i.data) for i in inputs if isinstance(i.data, bytes)))
    message = messages.ModelInferRequest(model_name=model, model_version=version)
    for given in inputs:
        entry = message.inputs.add(name=given.tensor.name, datatype=given.tensor.dtype, shape=given.tensor.shape)
        if isinstance(given.data, bytes):
            message.raw_input_contents.append(given.data)
        else:
            _place(entry, given.data)
    for name in outputs:
        message.outputs.add(name=name)
    check_size(model, message.ByteSize())
    request: bytes = message.SerializeToString()
    return request


def check_size(model: str, message_bytes: int) -> None:
    """UsageError if no gRPC message can be that long."""
    if message_bytes > MESSAGE_MAX_BYTES:
        raise UsageError(
            f"{model}: a request of {message_bytes} bytes is over gRPC's message limit of {MESSAGE_MAX_BYTES} bytes; "
            f"send fewer items per request, or use shared memory"
        )


def _place(entry: messages.ModelInferRequest.InferInputTensor, part: Part) -> None:
    entry.parameters["shared_memory_region"].string_param = part.region
    entry.parameters["shared_memory_byte_size"].int64_param = part.byte_size
    if part.offset:
        entry.parameters["shared_memory_offset"].int64_param = part.offset


def read_answer(answer: bytes) -> dict[str, np.ndarray]:
    """The outputs of a serialized ModelInferResponse; ValueError if it does not hold together."""
    message = parsed(answer)
    return {
        entry.name: request_bytes.unwire(data, entry.datatype, entry.shape)
        for entry, data in zip(message.outputs, message.raw_output_contents, strict=True)
    }


def parsed(answer: bytes) -> messages.ModelInferResponse:
    """The response in these bytes; ValueError if there is none."""
    try:
        return messages.ModelInferResponse.FromString(answer)
    except DecodeError as error:
        raise ValueError(f"no ModelInferResponse: {error}") from error


def answer(outputs: Sequence[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    """A serialized ModelInferResponse of outputs, each by name, dtype, shape and bytes."""
    message = messages.ModelInferResponse()
    for name, dtype, shape, data in outputs:
        message.outputs.add(name=name, datatype=dtype, shape=shape)
        message.raw_output_contents.append(data)
    written: bytes = message.SerializeToString()
    return written
