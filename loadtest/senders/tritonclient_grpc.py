"""The sender `tritonclient_grpc`: every request through tritonclient.grpc.aio, as an asyncio service sends it.

`python -m loadtest.senders.tritonclient_grpc SPEC.json NUMBER PARENT_PID`; what it reads and writes, the shell says.
"""

from __future__ import annotations

import sys
from typing import Any

import tritonclient.grpc
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from brim.errors import NotReady
from brim.records import Status
from loadtest import grpc_channel
from loadtest.senders import asyncio_load, grpc_answers, shell
from loadtest.senders.answers import clean
from loadtest.senders.backoff import CONNECT_S
from loadtest.senders.tritonclient_pool import ClientPool


class TritonclientWire:
    """The clients of one process, over which its slots are spread."""

    def __init__(self, share: shell.Share) -> None:
        self.share, self.redact = share, share.job.redact
        self.pool = ClientPool(tritonclient.grpc, share.spec, share.payload)
        self._clients: list[Any] = []

    async def connect(self) -> None:
        """Every client's connection, proved by a question over it."""
        spec = self.share.spec
        way = grpc_channel.route(spec.url, spec.allowed, spec.access, timeout_s=CONNECT_S)
        headers = dict(way.metadata)
        self.pool.infer |= {
            "headers": headers or None,
            "client_timeout": spec.timeout_s,
            "compression_algorithm": "gzip" if self.share.payload.compression == "gzip" else None,
        }
        for _ in range(max(1, min(spec.channels, self.share.concurrency))):
            self._clients.append(InferenceServerClient(way.address, creds=way.credentials, channel_args=way.options))
            try:
                await self._clients[-1].is_server_live(headers=headers, client_timeout=shell.CONNECT_WITHIN_S)
            except InferenceServerException as error:
                raise NotReady(f"{spec.url} does not answer over gRPC ({clean(self.redact(str(error)))})") from None

    def slot(self, number: int) -> TritonclientSlot:
        return TritonclientSlot(self, self._clients[number % len(self._clients)])

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class TritonclientSlot(asyncio_load.Slot):
    """One request in flight in one client."""

    def __init__(self, wire: TritonclientWire, client: Any) -> None:
        super().__init__(wire.share.job)
        self._wire, self._client, self._result = wire, client, None

    def cut(self) -> None:
        """tritonclient was told the deadline: it ends the request by itself."""

    async def exchange(self, payload: int) -> tuple[Status, str]:
        """Inputs made, sent, and the answer's arrays taken out."""
        pool = self._wire.pool
        try:
            self._result = await self._client.infer(**pool.request(payload))
        except InferenceServerException as error:
            code, said = str(error.status()).removeprefix("StatusCode."), str(error.message())
            if code == "UNAVAILABLE" and "failed to connect" in said.lower():
                self.broken, self.refusal = True, clean(self._wire.redact(said))
            return grpc_answers.failure(code, said, self.job.timeout_s, self._wire.redact)
        return pool.verdict(self._result)

    def answer(self) -> bytes:
        return self._wire.pool.message(self._result)


if __name__ == "__main__":
    sys.exit(asyncio_load.run(sys.argv[1:], TritonclientWire))
