"""The metrics endpoint: what is read of Triton's page, and that nothing it does stops a measurement."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from brim.records import Gpu
from loadtest.metrics_reader import REFRESH_S, RETRY_S, TIMEOUT_S, MetricsReader, parse, together

#: As tritonserver writes it, with one model and two GPUs.
PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="m \\"q\\"",version="1"} 18446744073709551615
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.5
nv_gpu_utilization{gpu_uuid="GPU-b"} 1
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 8.0e10
nv_gpu_memory_total_bytes{gpu_uuid="GPU-b"} 8.0e10
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1e9
nv_gpu_memory_used_bytes{gpu_uuid="GPU-b"} 2e9
nv_gpu_power_usage{gpu_uuid="GPU-a"} 300.5
nv_gpu_power_usage{gpu_uuid="GPU-b"} 100
"""
BOTH = Gpu(utilization=0.75, power_w=400.5, memory_used_bytes=3e9, memory_total_bytes=1.6e11)


def told(page: str, gpus: frozenset[str] = frozenset({"GPU-a", "GPU-b"})) -> Gpu:
    return together(parse(page), gpus)


def test_the_gpus_are_told_together() -> None:
    assert told(PAGE) == BOTH


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "text", "", "-3", "1e300", "1 x"])
def test_what_is_no_number_makes_its_own_column_unknown_and_no_other(value: str) -> None:
    page = PAGE.replace('power_usage{gpu_uuid="GPU-a"} 300.5', f'power_usage{{gpu_uuid="GPU-a"}} {value}')
    assert told(page) == Gpu(utilization=0.75, power_w=None, memory_used_bytes=3e9, memory_total_bytes=1.6e11)


def test_a_utilization_above_one_and_a_gauge_that_is_missing_are_unknown() -> None:
    assert told(PAGE.replace("} 1\n", "} 97\n")).utilization is None
    lines = [line for line in PAGE.splitlines() if "memory_used" not in line]
    assert told("\n".join(lines)).memory_used_bytes is None
    lines = [line for line in PAGE.splitlines() if 'power_usage{gpu_uuid="GPU-b' not in line]
    assert told("\n".join(lines)).power_w is None  # one of two: the sum would be another figure


def test_a_page_without_gpus_or_of_something_else_has_no_gauges() -> None:
    assert parse("# nothing\nnv_cpu_utilization 0.5\nnv_gpu_utilization_total 3\n") == {}
    assert parse("<html>nv_gpu_utilization</html>") == {}
    assert parse("nv_gpu_power_usage 5") == {"nv_gpu_power_usage": {"": 5.0}}  # a label is missing


class Endpoint:
    """Answers each connection with what `write` sends; counts them."""

    def __init__(self, write: Callable[[socket.socket], object]) -> None:
        self.write, self.asked = write, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/metrics"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if self.write is _stop:
                    return
                self.asked += 1
                try:
                    connection.recv(1 << 16)
                    self.write(connection)
                except OSError:  # the reader had enough
                    continue

    def close(self) -> None:
        self.write = _stop
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


def _stop(_: socket.socket) -> None: ...


@contextmanager
def endpoint(write: Callable[[socket.socket], object]) -> Iterator[Endpoint]:
    serving = Endpoint(write)
    try:
        yield serving
    finally:
        serving.close()


def page(text: str, status: str = "200 OK") -> Callable[[socket.socket], object]:
    body = text.encode()
    return lambda connection: connection.sendall(
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


def drip(connection: socket.socket) -> None:
    """A header line that never ends: each byte comes within any timeout of one read."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"# more\n" * 10_000)


def cut_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + PAGE.encode())


class Clock:
    """Stands still unless it is told to go on."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_it_asks_no_more_often_than_the_gauges_are_refreshed() -> None:
    clock = Clock()
    with endpoint(page(PAGE)) as serving:
        reader = MetricsReader(serving.url, clock=clock)
        assert [reader.read() for _ in range(3)] == [BOTH] * 3
        assert serving.asked == 1
        clock.now_s += REFRESH_S
        assert reader.read() == BOTH
        assert serving.asked == 2


def test_a_gpu_that_appears_later_is_not_counted_and_one_that_goes_leaves_the_columns_unknown() -> None:
    clock = Clock()
    with endpoint(page(PAGE)) as serving:
        reader = MetricsReader(serving.url, clock=clock)
        assert reader.read() == BOTH
        serving.write = page(PAGE + 'nv_gpu_power_usage{gpu_uuid="GPU-new"} 700\n')
        clock.now_s += REFRESH_S
        assert reader.read() == BOTH
        serving.write = page(PAGE.replace("GPU-b", "GPU-new"))
        clock.now_s += REFRESH_S
        assert reader.read() == Gpu(utilization=None, power_w=None, memory_used_bytes=None, memory_total_bytes=None)


@pytest.mark.parametrize(
    "write",
    [
        page(PAGE, "503 Service Unavailable"),
        page("no gpu\n"),
        cut_off,
        drip,
        flood,
        lambda connection: None,
        lambda connection: connection.recv(1),
    ],
    ids=["refused", "no-gpu", "cut-off", "dripping", "endless", "hung-up", "silent"],
)
def test_an_endpoint_that_tells_nothing_costs_no_more_than_its_timeout(
    write: Callable[[socket.socket], object],
) -> None:
    with endpoint(write) as serving:
        reader = MetricsReader(serving.url)
        begin_s = time.monotonic()
        assert reader.read() is None
        assert time.monotonic() - begin_s < 4 * TIMEOUT_S


def test_an_endpoint_that_is_down_is_left_alone_for_a_while_and_found_again() -> None:
    clock = Clock()
    with endpoint(page(PAGE)) as serving:
        reader = MetricsReader(serving.url, clock=clock)
        assert reader.read() == BOTH
        serving.write = page("", "500 Internal Server Error")
        clock.now_s += REFRESH_S
        assert reader.read() is None  # not what it said before
        serving.write = page(PAGE)
        clock.now_s += REFRESH_S
        assert (reader.read(), serving.asked) == (None, 2)
        clock.now_s += RETRY_S
        assert reader.read() == BOTH


def test_without_an_endpoint_or_with_one_elsewhere_nothing_is_asked() -> None:
    assert MetricsReader(None).read() is None
    assert MetricsReader("http://192.0.2.1:8002/metrics").read() is None  # not loopback, and nobody allowed it
    assert MetricsReader("nonsense").read() is None
