"""What the user asked for, the same for every target of one command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from brim import environment
from brim.records import Access, Arrivals, Protocol, Sender, TargetLimit, Transport
from experiments.measure.experiment import FIGURE_ROUNDS
from loadtest.driver import Driver
from loadtest.plan import LoadPlan

#: What sends a target's requests, by protocol and client.
SENDERS: Mapping[tuple[Protocol, str], Sender] = {
    ("http", "brim"): "locust_http",
    ("grpc", "brim"): "grpc_aio",
    ("http", "tritonclient"): "tritonclient_http",
    ("grpc", "tritonclient"): "tritonclient_grpc",
}


#: int64 ns from the start of a load, sorted.
Offsets: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """A rate instead of a concurrency: when each request is to be sent, whatever the server does."""

    offsets_ns: Offsets
    rate_per_s: float
    arrivals: Arrivals
    seconds: float
    outstanding: int
    cv: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SloAsked:
    """What is asked about the largest rate that meets an SLO."""

    limit_ms: float | None  # None = 5 x the time of a full batch
    percentile: float | None  # None = 99, or 95 of a slow model
    seconds: float  # that the search may take
    model_free: bool = False  # the data alone, without the queueing model
    only: bool = False  # no search for the peak before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for, the same for every target of one command."""

    plan: LoadPlan
    batch_id: str
    allowed: Mapping[str, TargetLimit]
    access: Access = Access()
    concurrency: int | None = None
    ladder: tuple[int, int] | None = None  # the user's own bounds
    senders: int = 1
    items_per_request: int = 1
    input_data: str | None = None
    cross_check: bool = True
    figure_rounds: int = FIGURE_ROUNDS
    starts: int = 1
    client: Literal["brim", "tritonclient"] = "brim"
    transport: Transport = "wire"
    compression: Literal["none", "gzip"] = "none"
    channels: int = 1
    cluster: Driver | None = None  # senders on other hosts
    workers: int = 0  # of the cluster
    open_loop: OpenLoop | None = None
    slo: SloAsked | None = None
    overload: bool = False

    @property
    def first_senders(self) -> int:
        """How many send to begin with: of a cluster's search all but one, the last is the experiment."""
        if self.cluster:
            return self.workers if self.concurrency is not None else max(1, self.workers - 1)
        return self.senders

    @property
    def max_senders(self) -> int:
        """Where the one-more-sender experiment ends: one beyond the cores at most, and always one more than asked."""
        if self.cluster:
            return self.workers
        return max(self.senders + 1, min(self.plan.max_senders, environment.usable_cores() + 1))
