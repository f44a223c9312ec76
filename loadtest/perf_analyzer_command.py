"""What perf_analyzer is told: its arguments, its environment and the file with its input data.

Reads a prepared payload; writes perf_analyzer-input.json beside it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from brim import disk, guard
from brim.errors import UsageError
from brim.records import Tensor
from loadtest import payload as pool
from loadtest import prepared, request_bytes
from loadtest.driver import LoadSpec

#: With a tolerance that nothing exceeds, 2.51 ends after exactly this many windows and merges them.
WINDOWS = 3
#: It sleeps for 1.2 times the interval that it was told (measured: 2.402 s for 2000 ms).
WINDOW_FACTOR = 1.2


def check(spec: LoadSpec) -> guard.Address:
    """The judged address to send to; UsageError if perf_analyzer cannot send this load as it is meant."""
    point = spec.point
    if point.mode != "closed" or point.protocol != "http" or point.transport != "wire":
        raise UsageError(
            f"the perf_analyzer driver sends closed-loop HTTP over the wire, not "
            f"{point.mode} {point.protocol} {point.transport}; use the Locust driver for this load point"
        )
    endpoint = guard.parse_url(spec.url)
    if endpoint.scheme != "http":
        raise UsageError(f"{spec.url}: the perf_analyzer driver speaks http://, not {endpoint.scheme}://")
    address = guard.judge(endpoint.host, endpoint.port, spec.allowed)[0]
    limit = spec.allowed.get(endpoint.host)
    if not address.loopback and limit is not None and limit.max_rate_per_s is not None:
        raise UsageError(
            f"{endpoint.host} may be sent {limit.max_rate_per_s}/s at most, and perf_analyzer in closed loop "
            f"keeps to no rate; leave the cross-check out"
        )
    return address


def arguments(spec: LoadSpec, address: guard.Address, input_data: Path, csv: Path) -> list[str]:
    """The arguments for one measured stretch of spec.seconds.

    Asynchronous with one thread: the cheapest of the modes tried, and only asynchronous requests appear in the
    trace (-v -v) that the rows are made from. The profile export is not asked for: it repeats the data of each
    request as JSON numbers (14 times its bytes in memory), and leaves out what is in flight at the end.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host
    version = ["-x", spec.version] if spec.version else []
    return [
        *("-m", spec.model, *version, "-i", "http", "-u", f"{host}:{address.port}"),
        *("-b", str(spec.point.items_per_request), "--input-data", str(input_data)),
        *("--concurrency-range", str(spec.point.concurrency), "--async", "--max-threads", "1"),
        *("--measurement-mode", "time_windows", "--measurement-interval", str(interval_ms(spec.seconds))),
        *("--stability-percentage", "999", "--max-trials", str(WINDOWS)),
        *("-f", str(csv), "-v", "-v"),
    ]


def interval_ms(seconds: float) -> int:
    """The interval of which WINDOWS windows last `seconds` together."""
    return max(1, round(seconds / WINDOWS / WINDOW_FACTOR * 1000))


def environment(libraries: Path) -> dict[str, str]:
    """A bare environment: libcurl would take a proxy out of the user's, and send loopback traffic through it."""
    return {"PATH": os.defpath, "LC_ALL": "C", "LD_LIBRARY_PATH": str(libraries), "NO_PROXY": "*", "no_proxy": "*"}


def write_input_data(payload: Path, takes_a_batch: Callable[[], bool]) -> Path:
    """The payload's pool in perf_analyzer's JSON, one step per item (it forms a batch out of consecutive steps).

    Not `--input-data random`: that is random bits, with NaN and subnormal floats among them.
    """
    file = payload / "perf_analyzer-input.json"
    if file.exists():
        return file
    half = file.with_suffix(".part")
    with disk.told(half), half.open("w", encoding="ascii") as stream:
        stream.write('{"data":[')
        for number, step in enumerate(_steps(payload, takes_a_batch())):
            stream.write("," * (number > 0) + json.dumps(step))
        stream.write("]}")
    with disk.told(file):
        half.replace(file)
    return file


def _steps(folder: Path, batched: bool) -> Iterator[dict[str, object]]:
    sent = prepared.load(folder)
    for member in range(len(sent.members)):
        arrays = pool.read_inputs(folder, member)
        for item in range(sent.items_per_request) if batched else [...]:
            yield {t.name: _tensor(t, np.asarray(arrays[t.name][item]), batched) for t in sent.inputs}


def _tensor(tensor: Tensor, array: np.ndarray, batched: bool) -> dict[str, object]:
    data = base64.b64encode(request_bytes.wire(array, tensor.dtype)).decode("ascii")
    return {"content": {"b64": data}, "shape": list(tensor.shape[1:] if batched else tensor.shape)}
