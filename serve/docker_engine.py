"""The few questions and orders that go to docker, and what becomes of its refusals.

Reads: the docker engine. Writes: nothing on this machine; docker keeps the container.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from brim.errors import NotReady


def answers() -> bool:
    """Whether a docker engine, and not only its client, is there."""
    if shutil.which("docker") is None:
        return False
    try:
        done = _docker("version", "--format", "{{.Server.Version}}", timeout_s=5)
    except NotReady:
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def run(command: Sequence[str]) -> None:
    """Start the container; NotReady with docker's own last line if it refuses."""
    done = _docker(*command[1:], timeout_s=3600)  # the first run fetches the image
    if done.returncode != 0:
        raise NotReady(f"docker run failed: {_last_line(done.stderr)}; `docker info` says whether the engine is up")


def restart(name: str) -> None:
    """Stop and start the container again; NotReady with docker's own last line if it does not."""
    done = _docker("restart", name, timeout_s=120)
    if done.returncode != 0:
        raise NotReady(f"docker restart {name} failed: {_last_line(done.stderr)}; `brim status` says what is left")


def running(name: str) -> bool:
    """Whether the container of that name runs."""
    try:
        done = _docker("inspect", "--format", "{{.State.Running}}", name, timeout_s=10)
    except NotReady:
        return False
    return done.returncode == 0 and done.stdout.strip() == "true"


def log_lines(name: str) -> list[str]:
    """The last lines that the container wrote, both streams together."""
    try:
        done = _docker("logs", "--tail", "200", name, timeout_s=10, merged=True)
    except NotReady:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def remove(name: str) -> None:
    """Stop the container and forget it; one that is gone already is fine."""
    done = _docker("rm", "--force", name, timeout_s=60)
    if done.returncode != 0 and "No such container" not in done.stderr:
        raise NotReady(f"docker rm --force {name} failed: {_last_line(done.stderr)}; stop it by hand")


def _docker(*words: str, timeout_s: float, merged: bool = False) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise NotReady("docker is not on PATH; install it, or use --mode embedded") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotReady(f"docker {words[0]} did not answer ({error}); `docker info` says whether it is up") from None


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and "--help" not in line]
    return lines[-1].strip() if lines else "it said nothing"
