"""Serves variants from NVIDIA's image, which has the native backends: the exact `docker run`, printed or run.

Reads: model_repository/, mounted read-only. Writes: out/servers/<id>/{server.json, log}.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brim import disk, layout
from brim.records import Server
from brim.say import Say
from serve import docker_engine, ledger, readiness
from serve.ports import LOOPBACK, PickedPorts

#: Newest release whose parts are known (Triton 2.72, ONNX Runtime 1.28, CUDA 13.4); 26.06 is the floor of the fixes.
IMAGE = "nvcr.io/nvidia/tritonserver:26.08-py3"
#: Where Triton listens inside the container; what is published outside is picked.
INSIDE = PickedPorts(http=8000, grpc=8001, metrics=8002)
MODELS = "/models"


def argv(
    variants: Sequence[str],
    image: str,
    ports: PickedPorts,
    gpus: bool,
    *,
    server_id: str,
    repository: Path,
    user: str,
    cpus: Sequence[int] = (),
) -> list[str]:
    """The `docker run` that serves exactly `variants`, reachable from this machine only."""
    command = ["docker", "run", "--detach", f"--name={server_id}", f"--user={user}"]
    if gpus:
        command.append("--gpus=all")
    if cpus:
        command.append("--cpuset-cpus=" + ",".join(str(core) for core in cpus))
    for outside, inside in zip(_numbers(ports), _numbers(INSIDE), strict=True):
        command.append(f"--publish={LOOPBACK}:{outside}:{inside}")
    command += [
        f"--volume={repository}:{MODELS}:ro",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--shm-size=1g",
        "--ulimit=memlock=-1",
        "--ulimit=stack=67108864",
        image,
    ]
    return command + server_argv(variants, server_id)


def server_argv(variants: Sequence[str], server_id: str) -> list[str]:
    """What runs inside: only the named variants are loaded, and one that is broken does not end the others."""
    return [
        "tritonserver",
        f"--id={server_id}",
        f"--model-repository={MODELS}",
        "--model-control-mode=explicit",
        "--exit-on-error=false",
        "--disable-auto-complete-config",
        *(f"--load-model={variant}" for variant in variants),
    ]


def _numbers(ports: PickedPorts) -> tuple[int, int, int]:
    return ports.http, ports.grpc, ports.metrics


def this_user() -> str:
    """The container runs as whoever wrote the repository: with all capabilities dropped, root could not read it."""
    return f"{os.getuid()}:{os.getgid()}"


def start(
    command: Sequence[str],
    variants: Sequence[str],
    ports: PickedPorts,
    *,
    server_id: str,
    out: Path,
    repository: Path,
    say: Say,
    wait_s: float,
) -> Server:
    """Run the container and wait until each variant is loaded or refused; it becomes `current`.

    NotReady if docker refuses, the container stops, or no variant is ready; then it is removed and its log kept.
    """
    server = Server(
        id=server_id,
        mode="docker",
        http=f"http://{LOOPBACK}:{ports.http}",
        grpc=f"grpc://{LOOPBACK}:{ports.grpc}",
        metrics=f"http://{LOOPBACK}:{ports.metrics}/metrics",
        pid=None,
        process_started_s=None,
        version="",
        variants=tuple(variants),
        repository=str(repository.absolute()),
        log=str(layout.server_folder(out, server_id).absolute() / "log"),
        container=server_id,
    )
    ledger.note(server, out)  # before docker has it: whatever happens now, `brim down` finds the container
    try:
        say.progress(f"{server_id}: docker run (the first time, it fetches the image)")
        docker_engine.run(command)
        answer = readiness.wait(
            url=server.http,
            server_id=server_id,
            variants=variants,
            log=lambda: docker_engine.log_lines(server_id),
            ended=lambda: None if docker_engine.running(server_id) else "the container stopped",
            wait_s=wait_s,
            progress=say.progress,
        )
        readiness.require_one_ready(answer.states, Path(server.log or ""))
        server = replace(server, version=answer.version)
        ledger.make_current(server, out)
    except BaseException:
        disk.save_text(Path(server.log or ""), "\n".join(docker_engine.log_lines(server_id)) + "\n")
        docker_engine.remove(server_id)
        ledger.forget(server, out)
        raise
    return server
