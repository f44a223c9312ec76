"""What perf_analyzer is told: its arguments, its environment and the file with its input data.

Reads a prepared payload; writes perf_analyzer-input.json beside it.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from brim import disk, guard
from brim.access import open_tls, ssl_context
from brim.errors import NotReady, UsageError
from brim.guard import Endpoint
from brim.records import Access, LoadPoint, TargetLimit, Tensor, Transport
from loadtest import payload as pool
from loadtest import prepared, request_bytes
from loadtest.driver import LoadSpec

#: With a tolerance that nothing exceeds, 2.51 ends after exactly this many windows and merges them.
WINDOWS = 3
#: It sleeps for 1.2 times the interval that it was told (measured: 2.402 s for 2000 ms).
WINDOW_FACTOR = 1.2
CONNECT_S = 5.0
#: Its words for the arrivals of an open loop, which are ours.
DISTRIBUTIONS = ("constant", "poisson")
#: Its flags for authorities, our certificate and our key.
SECURE = {
    "https": (
        "--ssl-https-ca-certificates-file",
        "--ssl-https-client-certificate-file",
        "--ssl-https-private-key-file",
    ),
    "grpcs": (
        "--ssl-grpc-root-certifications-file",
        "--ssl-grpc-certificate-chain-file",
        "--ssl-grpc-private-key-file",
    ),
}


def refusal(
    url: str, *, transport: Transport, compression: str, access: Access, allowed: Mapping[str, TargetLimit]
) -> str | None:
    """Why perf_analyzer cannot send such a load as it is meant, or None if it can."""
    endpoint = guard.parse_url(url)
    limit = allowed.get(endpoint.host)
    if limit is not None and limit.max_rate_per_s is not None:
        addresses = guard.judge(endpoint.host, endpoint.port, allowed)
        if not all(address.loopback for address in addresses):
            return (
                f"perf_analyzer in closed loop keeps to no rate, and {endpoint.host} may be sent "
                f"{limit.max_rate_per_s:g}/s at most"
            )
    if access.headers:
        return "perf_analyzer takes headers as arguments, which every user of this machine can read"
    if transport == "cuda_shared_memory":
        return "perf_analyzer 2.51 out of its wheel has no CUDA shared memory"
    if compression != "none" and endpoint.scheme.startswith("http"):
        return "perf_analyzer does not compress over HTTP"
    return None


def check(spec: LoadSpec) -> guard.Address:
    """The judged address to send to; UsageError if perf_analyzer cannot send this load as it is meant."""
    point, endpoint = spec.point, guard.parse_url(spec.url)
    why = refusal(
        spec.url, transport=point.transport, compression=point.compression, access=spec.access, allowed=spec.allowed
    )
    if point.mode == "open" and point.arrivals not in DISTRIBUTIONS:
        why = f"perf_analyzer has no {point.arrivals} arrivals"
    if why is not None:
        raise UsageError(f"{why}; leave the cross-check out")
    address = guard.judge(endpoint.host, endpoint.port, spec.allowed)[0]
    if endpoint.scheme in SECURE and address.host != endpoint.host:
        _require_certificate(spec, Endpoint(scheme=endpoint.scheme, host=address.host, port=address.port))
    return address


def _require_certificate(spec: LoadSpec, numeric: Endpoint) -> None:
    """perf_analyzer holds the certificate against what it connects to: a number, so that nothing is looked up again."""
    judged = {numeric.host: TargetLimit(host=numeric.host, max_rate_per_s=None)}  # as the address of its name
    sock = guard.connect(numeric.host, numeric.port, judged, timeout_s=CONNECT_S)
    try:
        open_tls(sock, ssl_context(spec.access), numeric).close()
    except NotReady as error:
        raise UsageError(f"perf_analyzer connects to {numeric.host}: {error}; leave the cross-check out") from None


def arguments(spec: LoadSpec, address: guard.Address, input_data: Path, csv: Path) -> list[str]:
    """The arguments for one measured stretch of spec.seconds.

    Asynchronous with one thread: the cheapest of the modes tried, and only asynchronous requests appear in the
    trace (-v -v) that the rows are made from. The profile export is not asked for: it repeats the data of each
    request as JSON numbers (14 times its bytes in memory), and leaves out what is in flight at the end.
    """
    protocol = spec.point.protocol
    host = f"[{address.host}]" if ":" in address.host else address.host
    scheme = "https://" if guard.parse_url(spec.url).scheme == "https" else ""
    return [
        *("-m", spec.model, "-i", protocol, "-u", f"{scheme}{host}:{address.port}"),
        *(("-x", spec.version) if spec.version else ()),
        *_tls(spec),
        *(("--shared-memory", "system") if spec.point.transport == "shared_memory" else ()),
        *(("--grpc-compression-algorithm", spec.point.compression) if protocol == "grpc" else ()),
        *("-b", str(spec.point.items_per_request), "--input-data", str(input_data)),
        *_loop(spec.point),
        *("--async", "--max-threads", "1"),
        *("--measurement-mode", "time_windows", "--measurement-interval", str(interval_ms(spec.seconds))),
        *("--stability-percentage", "999", "--max-trials", str(WINDOWS)),
        *("-f", str(csv), "-v", "-v"),
    ]


def _loop(point: LoadPoint) -> tuple[str, ...]:
    """Its closed loop, or its open one: on a schedule of its own, the same in every run, with no bound in flight."""
    if point.mode == "closed":
        return ("--concurrency-range", str(point.concurrency))
    return ("--request-rate-range", f"{point.rate_per_s:g}", "--request-distribution", str(point.arrivals))


def _tls(spec: LoadSpec) -> list[str]:
    """The files that its TLS is told by name; both its clients verify certificate and host unless told otherwise."""
    scheme, access = guard.parse_url(spec.url).scheme, spec.access
    if scheme not in SECURE:
        return []
    authorities = access.tls_ca or ssl.get_default_verify_paths().cafile
    files = zip(SECURE[scheme], (authorities, access.tls_cert, access.tls_key), strict=True)
    told = [word for flag, file in files if file for word in (flag, file)]
    return ["--ssl-grpc-use-ssl", "true", *told] if scheme == "grpcs" else told


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
