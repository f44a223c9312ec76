"""A gRPC inference server that gives the answers it was told to give: for what a real one would not say."""

from __future__ import annotations

from concurrent import futures
from typing import Any, Self

import grpc

from loadtest import grpc_requests

GOOD = grpc_requests.answer([("OUTPUT", "FP32", (1, 16), bytes(64))])


class FakeGrpc:
    """Takes any request and gives the answers in turn; remembers what it was sent along.

    With `echo` two of three requests get the Authorization header back: in an error's words, and as the name of an
    output beside the good one; so does a question about a model.
    """

    def __init__(self, answers: list[bytes], *, echo: bool = False) -> None:
        self.answers, self.asked = answers, 0
        self.metadata: list[dict[str, str]] = []
        self._echo = echo
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, call: Any) -> Any:
        method = call.method.rpartition("/")[2]
        if method == "ModelInfer":
            self.metadata.append(dict(call.invocation_metadata))
            return grpc.unary_unary_rpc_method_handler(self._next)
        if method == "ModelMetadata" and self._echo:
            return grpc.unary_unary_rpc_method_handler(_refuse)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")

    def _next(self, request: bytes, context: Any) -> bytes:
        self.asked += 1
        if self._echo and self.asked % 3 == 1:
            _refuse(request, context)
        if self._echo and self.asked % 3 == 2:
            outputs = [(name, "FP32", (1, 16), bytes(64)) for name in (_authorization(context), "OUTPUT")]
            return grpc_requests.answer(outputs)
        return self.answers[self.asked % len(self.answers)]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(5)


def _authorization(context: Any) -> str:
    return str(dict(context.invocation_metadata()).get("authorization", "it"))


def _refuse(request: bytes, context: Any) -> None:
    context.abort(grpc.StatusCode.UNKNOWN, f"who is {_authorization(context)}?")
