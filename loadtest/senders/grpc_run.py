"""The sender `grpc_aio`: prepared ModelInferRequest bytes over asyncio, in as many connections as the spec says.

`python -m loadtest.senders.grpc_run SPEC.json NUMBER PARENT_PID`; what it reads and writes, the shell says.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
import sys

from brim import guard
from brim.access import metadata, tls_failure
from brim.errors import BrimError, NotReady, UsageError
from brim.records import Status
from loadtest import grpc_channel
from loadtest.request_bytes import GZIP_LEVEL
from loadtest.senders import asyncio_load, grpc_answers, shell
from loadtest.senders.answers import clean
from loadtest.senders.backoff import CONNECT_S
from loadtest.senders.grpc_connection import Call, Failed, GrpcConnection, Lost, framed, request_block

SERVICE = "/inference.GRPCInferenceService/"
LATE = ("DEADLINE_EXCEEDED", "")  # what a call fails with that we cut ourselves


class GrpcWire:
    """What the connections of one process have in common."""

    def __init__(self, share: shell.Share) -> None:
        spec = share.spec
        self.share, self.redact = share, share.job.redact
        self.judge = grpc_answers.GrpcJudge(share.payload.outputs, self.redact)
        self._endpoint = guard.parse_url(spec.url)
        self._tls: ssl.SSLContext | None = None
        if self._endpoint.scheme == "grpcs":
            self._tls = grpc_channel.http2_context(spec.access)
        self._headers = metadata(spec.access)
        packed = share.payload.compression == "gzip"
        self.block = self._block("ModelInfer", spec.timeout_s, *([("grpc-encoding", "gzip")] if packed else []))
        self.pool = [
            framed(gzip.compress(request, GZIP_LEVEL) if packed else request, compressed=packed)
            for request in share.job.requests
        ]
        self._links: list[Link] = []

    def _block(self, method: str, timeout_s: float, *more: tuple[str, str]) -> bytes:
        scheme = "https" if self._tls else "http"
        return request_block(SERVICE + method, self._endpoint.netloc, scheme, timeout_s, *more, *self._headers)

    async def connect(self) -> None:
        """Every connection, proved by a question over it."""
        slots, channels = self.share.concurrency, max(1, self.share.spec.channels)
        for _ in range(min(slots, channels)):
            link = Link(self)
            self._links.append(link)
            connection = await link.opened()
            await self._prove(connection)
            if connection.streams_max * channels < slots:
                raise UsageError(
                    f"{self._endpoint.url} takes {connection.streams_max} requests at once on a connection; "
                    f"use --channels {-(-slots // max(1, connection.streams_max))}"
                )

    async def _prove(self, connection: GrpcConnection) -> None:
        question = connection.call(self._block("ServerLive", shell.CONNECT_WITHIN_S), framed(b""))
        try:
            await asyncio.wait_for(question.answer, shell.CONNECT_WITHIN_S)
        except (Failed, Lost, TimeoutError) as error:
            said = clean(self.redact(str(error) or "no answer in time"))
            raise NotReady(f"{self._endpoint.url} does not answer over gRPC ({said})") from None

    async def open_one(self) -> GrpcConnection:
        """A connection through the guard; NotReady or UsageError if there is none to be had."""
        spec, endpoint, loop = self.share.spec, self._endpoint, asyncio.get_running_loop()
        within_s = min(CONNECT_S, spec.timeout_s)
        sock = await loop.run_in_executor(
            None, lambda: guard.connect(endpoint.host, endpoint.port, spec.allowed, timeout_s=within_s)
        )
        sock.setblocking(False)
        name = endpoint.host if self._tls else None
        try:
            opening = loop.create_connection(GrpcConnection, sock=sock, ssl=self._tls, server_hostname=name)
            transport, connection = await asyncio.wait_for(opening, within_s)
        except OSError as error:  # TimeoutError and SSLError are
            said = tls_failure(error, endpoint) or f"{endpoint.url} does not answer ({error or 'too late'})"
            raise NotReady(clean(said)) from None
        if self._tls is not None:
            try:
                grpc_channel.require_http2(transport.get_extra_info("ssl_object"), endpoint)
            except NotReady:
                transport.close()
                raise
        return connection

    def slot(self, number: int) -> GrpcSlot:
        """A slot on the connection whose turn it is."""
        return GrpcSlot(self, self._links[number % len(self._links)])

    async def close(self) -> None:
        for link in self._links:
            link.close()


class Link:
    """A connection that slots share, opened anew when it is lost."""

    def __init__(self, wire: GrpcWire) -> None:
        self._wire = wire
        self._opening: asyncio.Task[GrpcConnection] | None = None
        self.connection: GrpcConnection | None = None

    async def opened(self) -> GrpcConnection:
        """The connection; whoever comes while it is being opened shares that one attempt, and its failure."""
        if self.connection is not None and self.connection.usable:
            return self.connection
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> GrpcConnection:
        try:
            self.connection = await self._wire.open_one()
            return self.connection
        finally:
            self._opening = None

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self.connection is not None:
            self.connection.close()


class GrpcSlot(asyncio_load.Slot):
    """One call in flight on a connection."""

    def __init__(self, wire: GrpcWire, link: Link) -> None:
        super().__init__(wire.share.job)
        self._wire, self._link = wire, link
        self._connection: GrpcConnection | None = None
        self._call: Call | None = None
        self._answer = b""

    def cut(self) -> None:
        """The deadline is over: give the call up."""
        if self._connection is not None and self._call is not None:
            self._connection.cancel(self._call, Failed(*LATE))

    async def exchange(self, payload: int) -> tuple[Status, str]:
        """One call from its frames to its judged answer."""
        self._call = None
        try:
            connection = self._link.connection
            if connection is None or not connection.usable:
                connection = await self._reopened()
            self._connection = connection
            self._call = call = connection.call(self._wire.block, self._wire.pool[payload])
            self._answer = await call.answer
        except Failed as error:
            return grpc_answers.failure(error.code, error.details, self.job.timeout_s, self._wire.redact)
        except Lost as error:
            self.broken = True
            return Status.FAILED, clean(self._wire.redact(str(error)))
        except BrimError as error:
            self.broken, self.refusal = True, clean(str(error))
            return Status.FAILED, self.refusal
        except asyncio.CancelledError:
            if self._connection is not None and self._call is not None:
                self._connection.cancel(self._call, Failed("CANCELLED", ""))
            raise
        return self._wire.judge.verdict(self._answer)

    async def _reopened(self) -> GrpcConnection:
        """The link's connection, once there is one; Failed if the request's deadline comes first."""
        with contextlib.suppress(TimeoutError):
            connection = await asyncio.wait_for(self._link.opened(), self.job.timeout_s)
            if not self.overdue:
                return connection
        raise Failed(*LATE)

    def answer(self) -> bytes:
        return self._answer


if __name__ == "__main__":
    sys.exit(asyncio_load.run(sys.argv[1:], GrpcWire))
