"""Load by MLPerf LoadGen, an optional third generator: it decides what is sent when, and a pool of connections sends.

Writes loadgen.json into the load's folder; the child (loadtest.senders.loadgen_run) writes the rest, as every sender.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from brim import disk, guard
from brim.errors import NotReady, UsageError
from loadtest import loadgen
from loadtest.driver import LoadSpec, RunningLoad
from loadtest.loadgen import Settings
from loadtest.sender_driver import begin


def available() -> str | None:
    """Why LoadGen cannot run here, in one line, or None if it can."""
    if find_spec("mlperf_loadgen") is None:
        return "MLPerf LoadGen is not installed; `make calibrate ARGS=--loadgen` installs it"
    return None


class LoadGenDriver:
    """One LoadGen process per load point; what `Settings` says, a load point does not."""

    generator: Literal["locust", "perf_analyzer", "loadgen"] = "loadgen"
    ends_itself = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def start(self, spec: LoadSpec, folder: Path) -> RunningLoad:
        """Begin sending; UsageError if this load is not for LoadGen, NotReady if it is not installed."""
        _require_plain(spec)
        if (why := available()) is not None:
            raise NotReady(why)
        disk.save(loadgen.settings_file(folder), self._settings)
        return begin(spec, folder)


def _require_plain(spec: LoadSpec) -> None:
    """UsageError for what the pool of connections does not send, or LoadGen does not schedule."""
    point = spec.point
    if guard.parse_url(spec.url).scheme != "http" or point.transport != "wire" or spec.access.headers:
        raise UsageError("LoadGen sends plain HTTP here, without TLS, headers and shared memory; leave it out")
    if point.senders != 1:
        raise UsageError(f"LoadGen sends from one process, not from {point.senders}; leave --senders out")
    if point.mode == "open" and (point.arrivals != "poisson" or spec.arrivals is not None):
        raise UsageError("LoadGen's arrivals are Poisson, on a schedule of its own; ask for those, or leave it out")
    limit = spec.allowed.get(guard.parse_url(spec.url).host)
    if limit is not None and limit.max_rate_per_s is not None:
        raise UsageError(f"LoadGen keeps to no limit, and {limit.host} has one; leave it out")
