"""Questions to a KServe v2 server over HTTP(S): metadata, readiness, statistics; through the guard; it never infers."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from brim import guard
from brim.access import PLAIN, open_tls, read_headers, redactor, ssl_context, tls_failure
from brim.errors import NotReady, UsageError
from brim.guard import Endpoint
from brim.records import Access, TargetLimit

MemoryKind = Literal["system", "cuda"]  # the protocol's words for shared memory
TLS_RECORD = ("\x15\x03", "\x16\x03")  # what a TLS server's answer to plain HTTP begins with
ASK_CREDENTIALS = (401, 403)


class _Connection(http.client.HTTPConnection):
    """An HTTP connection whose socket comes from the guard, inside TLS where the URL says so."""

    def __init__(
        self,
        endpoint: Endpoint,
        allowed: Mapping[str, TargetLimit],
        timeout_s: float,
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=timeout_s)
        self._endpoint, self._allowed, self._timeout_s, self._context = endpoint, allowed, timeout_s, context
        if context is not None:
            self.default_port = http.client.HTTPS_PORT  # which the Host header leaves out

    def connect(self) -> None:
        host = self._endpoint.host
        self.sock = guard.connect(host, self._endpoint.port, self._allowed, timeout_s=self._timeout_s)
        if self._context is not None:
            self.sock = open_tls(self.sock, self._context, self._endpoint)


class KServe:
    """One server's control side. Every call opens, asks and closes: it must work before, during and after load."""

    def __init__(
        self,
        url: str,
        allowed: Mapping[str, TargetLimit] | None = None,
        access: Access = PLAIN,
        *,
        timeout_s: float = 5.0,
    ) -> None:
        """UsageError if the URL is not HTTP's, or a file that `access` names is unfit."""
        self.endpoint = guard.parse_url(url)
        if self.endpoint.scheme not in ("http", "https"):
            raise UsageError(f"{url}: these questions go over http:// or https://")
        self._allowed = allowed or {}
        self._timeout_s = timeout_s
        self._context = ssl_context(access) if self.endpoint.scheme == "https" else None
        self._headers, self._redact = dict(read_headers(access)), redactor(access)

    def metadata(self) -> dict[str, Any]:
        """GET /v2: name (the server's --id), version, extensions."""
        about: dict[str, Any] = self._json("GET", "/v2")
        return {key: self._redact(value) if isinstance(value, str) else value for key, value in about.items()}

    def model_ready(self, model: str, version: str = "") -> bool:
        """GET /v2/models/<model>/ready answers 200."""
        return self._ask("GET", _model(model, version) + "/ready")[0] == 200

    def model_metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs with dtype and shape, as the server tells them; NotReady with its own words if not."""
        metadata: dict[str, Any] = self._json("GET", _model(model, version))
        return metadata

    def model_config(self, model: str, version: str = "") -> dict[str, Any]:
        """The configuration that the server really uses."""
        config: dict[str, Any] = self._json("GET", _model(model, version) + "/config")
        return config

    def statistics(self, model: str, version: str = "") -> dict[str, Any]:
        """The one entry of model_stats for this model: cumulative counters since it was loaded."""
        stats = self._json("GET", _model(model, version) + "/stats")["model_stats"]
        if not stats:
            raise NotReady(f"{self.endpoint.url} tells no statistics of {model}; is it loaded?")
        entry: dict[str, Any] = stats[-1]
        return entry

    def repository_index(self) -> list[dict[str, Any]]:
        """Every model that the server knows, with state and reason."""
        index: list[dict[str, Any]] = self._json("POST", "/v2/repository/index", body=b"{}")
        return [{**entry, "reason": self._redact(str(entry.get("reason", "")))} for entry in index]

    def shared_memory(self, kind: MemoryKind) -> list[str]:
        """The names of the shared-memory regions of that kind that are registered, everybody's."""
        return [str(entry["name"]) for entry in self._json("GET", f"/v2/{kind}sharedmemory/status")]

    def register_shared_memory(self, kind: MemoryKind, name: str, about: Mapping[str, Any]) -> None:
        """Have it map a region, told as the protocol's JSON does (`key`, `byte_size`; for CUDA `raw_handle`, …)."""
        self._done(f"/v2/{kind}sharedmemory/region/{quote(name, safe='')}/register", json.dumps(about).encode())

    def unregister_shared_memory(self, kind: MemoryKind, name: str) -> None:
        """Have it forget a region; NotReady while a request uses it. A name that it does not know is no error."""
        self._done(f"/v2/{kind}sharedmemory/region/{quote(name, safe='')}/unregister", b"")

    def _done(self, path: str, body: bytes) -> None:
        """Ask for something that is answered without a document if all is well."""
        status, content = self._ask("POST", path, body)
        if status != 200:
            raise NotReady(self._redact(f"{self.endpoint.url}{path} answered {status}: {_reason(content)}"))

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        status, content = self._ask(method, path, body)
        where = f"{self.endpoint.url}{path}"
        try:
            answer = json.loads(content)
        except ValueError:
            if status in ASK_CREDENTIALS:
                raise NotReady(f"{where} answered {status}: give credentials with --header NAME=@FILE") from None
            raise NotReady(f"{where} answered {status} without JSON; is it a KServe v2 server?") from None
        if status != 200:
            reason = answer.get("error", answer) if isinstance(answer, dict) else answer
            raise NotReady(self._redact(f"{where} answered {status}: {reason}"))
        return answer

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = _Connection(self.endpoint, self._allowed, self._timeout_s, self._context)
        try:
            connection.request(method, path, body=body, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(self._unanswered(error)) from None
        finally:
            connection.close()

    def _unanswered(self, error: Exception) -> str:
        """Why there is no answer, in one line."""
        url, tls = self.endpoint.url, self._context is not None
        told = tls_failure(error, self.endpoint) if tls else None
        if told is not None:
            return told
        if not tls and str(error).startswith(TLS_RECORD):
            return f"{url}: the server speaks TLS on this port; write https://{self.endpoint.netloc}"
        what = self._redact(" ".join(str(error).split()))
        hint = "`make serve` starts a server"
        if isinstance(error, (ConnectionError, ssl.SSLEOFError)):  # it was connected, and the server ended it
            hint = (
                "does it want another client certificate (--tls-cert)?" if tls else f"{hint}; with TLS it is https://"
            )
        return f"{url} does not answer ({type(error).__name__}: {what}); {hint}"


def _model(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _reason(content: bytes) -> str:
    """The server's own words in an answer, in one line."""
    text = content[:2000].decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        answer = json.loads(content)
        text = str(answer.get("error", answer) if isinstance(answer, dict) else answer)
    return " ".join(text.split())
