"""`--mode docker` against a docker executable of the test's own: what it is told, and what becomes of its refusals."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from brim import layout
from brim.errors import NotReady
from brim.records import Server
from brim.say import Say
from serve import container, docker_engine, ledger
from serve.ports import PickedPorts

ID = "brim-20261122t143812z-1a2b3c"

# Keeps a line for each call; the file `up` stands for the container, and $refuse for a docker that says no.
DOCKER = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
case "$1" in
  run) test -f "$here/refuse" && { echo "docker: Error response: $(cat "$here/refuse")" >&2; exit 125; }
       touch "$here/up";;
  inspect) test -f "$here/up" && echo true || exit 1;;
  logs) cat "$here/logs";;
  rm) rm -f "$here/up";;
  version) echo 28.2.2;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "docker"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    (folder / "logs").write_text('E1122 14:38:52.796916 1 main.cc:257] "no kernel image for this GPU"\n')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


class Triton(BaseHTTPRequestHandler):
    """What a container answers whose only good variant is a__b4."""

    answers = {
        "/v2": {"name": ID, "version": "2.72.0", "extensions": []},
        "/v2/repository/index": [
            {"name": "a__b4", "version": "1", "state": "READY"},
            {"name": "b__b4", "version": "1", "state": "UNAVAILABLE", "reason": "not an ONNX model"},
            {"name": "c__b4"},
        ],
    }

    def do_GET(self) -> None:
        body = json.dumps(self.answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def ports() -> Iterator[PickedPorts]:
    httpd = HTTPServer(("127.0.0.1", 0), Triton)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield PickedPorts(http=httpd.server_port, grpc=1, metrics=2)
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def start(tmp_path: Path, ports: PickedPorts, *variants: str) -> Server:
    repository = tmp_path / "repository"
    command = container.argv(variants, "image:tag", ports, False, server_id=ID, repository=repository, user="1000:1000")
    out, quiet = tmp_path / "out", Say(quiet=True)
    return container.start(command, variants, ports, server_id=ID, out=out, repository=repository, say=quiet, wait_s=5)


def test_a_container_becomes_the_current_server_and_is_removed_by_down(
    docker: Path, ports: PickedPorts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    server = start(tmp_path, ports, "a__b4", "b__b4")
    assert ledger.current(out) == server and ledger.usable(out) == server
    assert (server.mode, server.container, server.pid, server.version) == ("docker", ID, None, "2.72.0")
    assert ledger.viewed(tmp_path / "repository") == {"a__b4", "b__b4"}
    ledger.stop(server, out)
    assert ledger.current(out) is None and not ledger.alive(server)
    calls = (docker / "calls").read_text().splitlines()
    assert calls[0].startswith(f"run --detach --name={ID} ")
    assert calls[0].endswith("--load-model=a__b4 --load-model=b__b4")
    assert f"rm --force {ID}" in calls


def test_what_docker_says_when_it_refuses_is_told_in_one_line_and_nothing_is_left(
    docker: Path, ports: PickedPorts, tmp_path: Path
) -> None:
    (docker / "refuse").write_text("manifest for image:tag not found")
    with pytest.raises(NotReady, match=r"docker run failed: docker: Error response: manifest for image:tag not found"):
        start(tmp_path, ports, "a__b4")
    assert ledger.current(tmp_path / "out") is None
    assert ledger.viewed(tmp_path / "repository") == frozenset()


def test_a_container_with_nothing_to_serve_is_removed_and_its_log_kept(
    docker: Path, ports: PickedPorts, tmp_path: Path
) -> None:
    with pytest.raises(NotReady, match=r"no variant is ready.*b__b4: not an ONNX model"):
        start(tmp_path, ports, "b__b4")
    assert not (docker / "up").exists()
    assert "no kernel image" in (layout.server_folder(tmp_path / "out", ID) / "log").read_text()


def test_a_start_that_was_cut_off_is_found_again_by_down(docker: Path, ports: PickedPorts, tmp_path: Path) -> None:
    server = start(tmp_path, ports, "a__b4")
    layout.current_server(tmp_path / "out").unlink()
    assert ledger.started_from(tmp_path / "out", tmp_path / "repository") == [server]


def test_a_docker_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not docker_engine.answers()
    with pytest.raises(NotReady, match="docker is not on PATH"):
        docker_engine.run(["docker", "run"])
