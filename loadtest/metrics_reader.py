"""The GPUs as Triton's Prometheus endpoint tells them: asked rarely and shortly beside a load, and never in its way.

Whatever the endpoint does (down, slow, endless, no numbers), the measurement goes on with the columns null.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping

from prometheus_client.parser import text_string_to_metric_families

from brim import guard
from brim.errors import BrimError
from brim.records import Gpu, TargetLimit

#: Triton refreshes its gauges this often (--metrics-interval-ms); asked more often it repeats itself.
REFRESH_S = 2.0
#: An endpoint that did not answer is left alone for a while: each try may take the timeout.
RETRY_S = 10.0
TIMEOUT_S = 0.5
#: Triton's page has some 100 lines a model; what goes on beyond this is no such page.
PAGE_BYTES = 4 * 2**20
#: Beyond any number of this kind that a GPU can have (an exabyte): a counter that went wrong.
ABSURD = 1e18

UTILIZATION, POWER = "nv_gpu_utilization", "nv_gpu_power_usage"
USED, TOTAL = "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"
GAUGES = (UTILIZATION, POWER, USED, TOTAL)


_GPU = re.compile(r'gpu_uuid="([^"]*)"')

#: gauge -> GPU -> value; not a number where the page says something else.
Gauges = Mapping[str, Mapping[str, float]]


class MetricsReader:
    """One endpoint; `url` None = there is none that is known. The GPUs are those of its first page that names any."""

    def __init__(
        self,
        url: str | None,
        allowed: Mapping[str, TargetLimit] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._allowed, self._clock = url, allowed or {}, clock
        self._next_s = -math.inf
        self._gpus: frozenset[str] = frozenset()
        self._last: Gpu | None = None

    def read(self) -> Gpu | None:
        """What the gauges say now, or said when they were last refreshed; None if nothing is known. Never raises."""
        if self._url is not None and self._clock() >= self._next_s:
            try:
                gauges, wait_s = parse(_page(self._url, self._allowed)), REFRESH_S
            except (BrimError, OSError, http.client.HTTPException):
                gauges, wait_s = {}, RETRY_S
            self._gpus = self._gpus or frozenset(gpu for values in gauges.values() for gpu in values)
            self._last = together(gauges, self._gpus) if gauges else None
            self._next_s = self._clock() + wait_s
        return self._last


def parse(page: str) -> Gauges:
    """The GPU gauges of a page in Prometheus' text format; whatever else it holds is passed over."""
    gauges: dict[str, dict[str, float]] = {}
    for line in page.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in GAUGES:
            continue
        gpu, value = _sample(line)
        gauges.setdefault(name, {})[gpu] = value
    return gauges


def together(gauges: Gauges, gpus: Collection[str]) -> Gpu:
    """These GPUs as one: a gauge that one of them lacks is not known, since a sum without it is another figure."""
    shares = _sum(gauges.get(UTILIZATION, {}), gpus)
    utilization = None if shares is None else shares / len(gpus)
    return Gpu(
        utilization=utilization if utilization is not None and utilization <= 1 else None,
        power_w=_sum(gauges.get(POWER, {}), gpus),
        memory_used_bytes=_sum(gauges.get(USED, {}), gpus),
        memory_total_bytes=_sum(gauges.get(TOTAL, {}), gpus),
    )


def _sample(line: str) -> tuple[str, float]:
    """GPU and value of one line."""
    try:
        sample = next(sample for family in text_string_to_metric_families(f"{line}\n") for sample in family.samples)
    except (ValueError, StopIteration):
        named = _GPU.search(line)
        return named[1] if named else "", math.nan
    return sample.labels.get("gpu_uuid", ""), sample.value


def _sum(values: Mapping[str, float], gpus: Collection[str]) -> float | None:
    given = [values.get(gpu, math.nan) for gpu in gpus]
    return sum(given) if given and all(0 <= value <= ABSURD for value in given) else None


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        sock.shutdown(socket.SHUT_RDWR)


def _page(url: str, allowed: Mapping[str, TargetLimit]) -> str:
    """The page at `url`; OSError if it is not there as a whole within the timeout, or goes on for ever."""
    base, _, path = url.removeprefix("http://").partition("/")
    endpoint = guard.parse_url(f"http://{base}")
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    connection.sock = sock = guard.connect(endpoint.host, endpoint.port, allowed, timeout_s=TIMEOUT_S)
    # The socket's own timeout counts from byte to byte; this one ends what trickles.
    over = threading.Timer(TIMEOUT_S, _shut, (sock,))
    over.start()
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        content = response.read(PAGE_BYTES)
        if response.status != http.client.OK or response.length or len(content) == PAGE_BYTES or not over.is_alive():
            raise OSError("no page, half a page, or one without an end")
        return content.decode("utf-8", "replace")
    finally:
        over.cancel()
        over.join()
        connection.close()
