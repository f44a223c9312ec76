"""Questions to a KServe v2 server over HTTP (metadata, readiness, statistics), through the guard; it never infers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from brim import guard
from brim.errors import NotReady, UsageError
from brim.guard import Endpoint
from brim.records import TargetLimit


class _Connection(http.client.HTTPConnection):
    """An HTTP connection whose socket comes from the guard."""

    def __init__(self, endpoint: Endpoint, allowed: Mapping[str, TargetLimit], timeout_s: float) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=timeout_s)
        self._endpoint, self._allowed, self._timeout_s = endpoint, allowed, timeout_s

    def connect(self) -> None:
        self.sock = guard.connect(self._endpoint.host, self._endpoint.port, self._allowed, timeout_s=self._timeout_s)


class KServe:
    """One server's control side. Every call opens, asks and closes: it must work before, during and after load."""

    def __init__(self, url: str, allowed: Mapping[str, TargetLimit] | None = None, *, timeout_s: float = 5.0) -> None:
        self.endpoint = guard.parse_url(url)
        self._allowed = allowed or {}
        self._timeout_s = timeout_s
        if self.endpoint.scheme != "http":
            raise UsageError(f"{url}: questions go over http://; {self.endpoint.scheme} comes later")

    def metadata(self) -> dict[str, Any]:
        """GET /v2: name (the server's --id), version, extensions."""
        about: dict[str, Any] = self._json("GET", "/v2")
        return about

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
        entry: dict[str, Any] = stats[-1]
        return entry

    def repository_index(self) -> list[dict[str, Any]]:
        """Every model that the server knows, with state and reason."""
        index: list[dict[str, Any]] = self._json("POST", "/v2/repository/index", body=b"{}")
        return index

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        status, content = self._ask(method, path, body)
        where = f"{self.endpoint.url}{path}"
        try:
            answer = json.loads(content)
        except ValueError:
            raise NotReady(f"{where} answered {status} without JSON; is it a KServe v2 server?") from None
        if status != 200:
            reason = answer.get("error", answer) if isinstance(answer, dict) else answer
            raise NotReady(f"{where} answered {status}: {reason}")
        return answer

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = _Connection(self.endpoint, self._allowed, self._timeout_s)
        try:
            connection.request(method, path, body=body)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(
                f"{self.endpoint.url} does not answer ({type(error).__name__}: {error}); `make serve` starts a server"
            ) from error
        finally:
            connection.close()


def _model(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path
