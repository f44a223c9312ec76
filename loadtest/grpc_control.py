"""Questions to a KServe v2 server over gRPC, answered in the shapes of the HTTP protocol's JSON; it never infers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import Message  # type: ignore[import-untyped]  # its stubs are a package apart
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from brim import guard
from brim.access import redactor
from brim.errors import NotReady
from brim.kserve import MemoryKind
from brim.records import Access, TargetLimit
from loadtest import grpc_channel

SIGN_IN = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class GrpcControl:
    """One server's control side. Every call opens, asks and closes: it must work before, during and after load."""

    def __init__(self, url: str, allowed: Mapping[str, TargetLimit], access: Access, *, timeout_s: float = 5.0) -> None:
        """UsageError if a file that `access` names is unfit."""
        self.endpoint = guard.parse_url(url)
        self._allowed, self._access, self._timeout_s = dict(allowed), access, timeout_s
        self._redact = redactor(access)

    def metadata(self) -> dict[str, Any]:
        """Name (the server's --id), version, extensions."""
        about: dict[str, Any] = self._redacted(plain(self._ask("ServerMetadata", messages.ServerMetadataRequest())))
        return about

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether the model answers as ready; one that the server does not know is not."""
        request = messages.ModelReadyRequest(name=model, version=version)
        try:
            return bool(self._call("ModelReady", request).ready)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return False
            raise NotReady(self._unanswered("ModelReady", error)) from None

    def model_metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs with dtype and shape, as the server tells them; NotReady with its own words if not."""
        return plain(self._ask("ModelMetadata", messages.ModelMetadataRequest(name=model, version=version)))

    def model_config(self, model: str, version: str = "") -> dict[str, Any]:
        """The configuration that the server really uses."""
        return plain(self._ask("ModelConfig", messages.ModelConfigRequest(name=model, version=version)).config)

    def statistics(self, model: str, version: str = "") -> dict[str, Any]:
        """The one entry of model_stats for this model: cumulative counters since it was loaded."""
        answer = self._ask("ModelStatistics", messages.ModelStatisticsRequest(name=model, version=version))
        if not answer.model_stats:
            raise NotReady(f"{self.endpoint.url} tells no statistics of {model}; is it loaded?")
        return plain(answer.model_stats[-1])

    def repository_index(self) -> list[dict[str, Any]]:
        """Every model that the server knows, with state and reason."""
        answer = self._ask("RepositoryIndex", messages.RepositoryIndexRequest())
        return [self._redacted(plain(entry)) for entry in answer.models]

    def shared_memory(self, kind: MemoryKind) -> list[str]:
        """The names of the shared-memory regions of that kind that are registered, everybody's."""
        ours = "System" if kind == "system" else "Cuda"
        request = getattr(messages, f"{ours}SharedMemoryStatusRequest")()
        return sorted(self._ask(f"{ours}SharedMemoryStatus", request).regions)

    def register_shared_memory(self, kind: MemoryKind, name: str, about: Mapping[str, Any]) -> None:
        """Have it map a region, told as the protocol's JSON does (`key`, `byte_size`; for CUDA `raw_handle`, …)."""
        if kind == "system":
            self._ask("SystemSharedMemoryRegister", messages.SystemSharedMemoryRegisterRequest(name=name, **about))
        else:
            told = {**about, "raw_handle": base64.b64decode(about["raw_handle"]["b64"])}
            self._ask("CudaSharedMemoryRegister", messages.CudaSharedMemoryRegisterRequest(name=name, **told))

    def unregister_shared_memory(self, kind: MemoryKind, name: str) -> None:
        """Have it forget a region; NotReady while a request uses it. A name that it does not know is no error."""
        ours = "System" if kind == "system" else "Cuda"
        request = getattr(messages, f"{ours}SharedMemoryUnregisterRequest")(name=name)
        self._ask(f"{ours}SharedMemoryUnregister", request)

    def _ask(self, method: str, request: Message) -> Any:
        try:
            return self._call(method, request)
        except grpc.RpcError as error:
            raise NotReady(self._unanswered(method, error)) from None

    def _call(self, method: str, request: Message) -> Any:
        way = grpc_channel.route(self.endpoint.url, self._allowed, self._access, timeout_s=self._timeout_s)
        with grpc_channel.opened(way) as channel:
            ask = getattr(GRPCInferenceServiceStub(channel), method)
            return ask(request, timeout=self._timeout_s, metadata=way.metadata)

    def _unanswered(self, method: str, error: Any) -> str:
        """Why there is no answer, in one line."""
        said = self._redact(" ".join((error.details() or "").split()))
        where = f"{self.endpoint.url}: {method}"
        if error.code() in SIGN_IN:
            return f"{where} answered {error.code().name}: {said}; give credentials with --header NAME=@FILE"
        return f"{where} answered {error.code().name}: {said}"

    def _redacted(self, about: dict[str, Any]) -> dict[str, Any]:
        return {key: self._redact(value) if isinstance(value, str) else value for key, value in about.items()}


def plain(message: Message) -> dict[str, Any]:
    """A message as the HTTP protocol's JSON has it: the schema's own names, every plain field, 64 bits as numbers.

    protobuf's own JSON writes 64-bit numbers as strings.
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _plain_value(inner, value[key]) for key in value}
        elif field.is_repeated:
            found[field.name] = [_plain_value(field, each) for each in value]
        else:
            found[field.name] = _plain_value(field, value)
    return found


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
