"""From the words on the command line to targets: variants of the server that Brim runs, or any model on any Triton."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brim import guard
from brim.errors import BrimError, UsageError, did_you_mean
from brim.records import Access, Protocol, Server, Target, TargetLimit
from loadtest import target as targets
from loadtest.control import Control
from loadtest.link import interface_bytes_per_s
from serve import ledger
from serve.variants import load_variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One thing to measure, not yet looked at: a variant's name, or a model at a URL."""

    model: str
    url: str
    version: str = ""
    server: Server | None = None


def _is_address(word: str) -> bool:
    """`http://host:8000`, but also `host:8000`, which parse_url then refuses with the right form."""
    return "://" in word or re.fullmatch(r"[^:/]+:\d+", word) is not None


def wanted(words: Sequence[str], version: str, out: Path, protocol: Protocol | None = None) -> list[Wanted]:
    """What the words ask for; without words, every variant of the current server over `protocol` (default: HTTP)."""
    if words and _is_address(words[0]):
        if len(words) != 2:
            raise UsageError(f"{words[0]}: name one model behind the URL, as in `brim loadtest {words[0]} my_model`")
        if protocol is not None and not guard.parse_url(words[0]).scheme.startswith(protocol):
            raise UsageError(f"--protocol {protocol}: {words[0]} says otherwise; write {protocol}://host:port")
        return [Wanted(model=words[1], url=words[0], version=version)]
    server = ledger.usable(out)
    unknown = [w for w in words if w not in server.variants]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not served; {did_you_mean(unknown[0], server.variants)} (`brim status`)")
    url = server.grpc if protocol == "grpc" else server.http
    if url is None:
        raise UsageError(f"--protocol grpc: the gRPC port of {server.id} is not known; name it: grpc://host:port MODEL")
    return [
        Wanted(model=name, url=url, version=version, server=server) for name in dict.fromkeys(words or server.variants)
    ]


def describe(
    one: Wanted, allowed: Mapping[str, TargetLimit], shapes: Mapping[str, tuple[int, ...]], access: Access
) -> Target:
    """The target as its own server describes it; NotReady with the server's reason if it is not ready."""
    variant = load_variant(Path(one.server.repository), one.model) if one.server and one.server.repository else None
    return targets.describe(
        one.url, one.model, version=one.version, allowed=allowed, variant=variant, server=one.server, shapes=shapes,
        access=access,
    )  # fmt: skip


def protocol(target: Target) -> Protocol:
    """Over what it is loaded: its URL says."""
    return "grpc" if target.url.startswith("grpc") else "http"


def local(target: Target) -> bool:
    """Whether its server is on this machine."""
    endpoint = guard.parse_url(target.url)
    try:
        guard.judge(endpoint.host, endpoint.port, {})
    except BrimError:
        return False
    return True


def link_bytes_per_s(target: Target) -> float | None:
    """The rate of the interface towards a server elsewhere, as its driver tells it; None if it does not."""
    endpoint = guard.parse_url(target.url)
    return None if local(target) else interface_bytes_per_s(endpoint.host, endpoint.port)


def again(one: Wanted, out: Path) -> Wanted:
    """The same of the server that runs now: an earlier target may have been measured over several starts of it."""
    return one if one.server is None else replace(one, server=ledger.usable(out))


def server_pid(target: Target) -> int | None:
    """The process whose CPU time is the server's, where it is on this machine and Brim's own."""
    return target.server.pid if target.server is not None else None


def sender_cpus(target: Target) -> tuple[int, ...]:
    """Where senders run while the server is pinned: the other cores; () = wherever, as nothing is pinned."""
    if target.server is None or not target.server.cpus or not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0) - set(target.server.cpus)))


def lost_reason(target: Target, ask: Control) -> str | None:
    """Why the target no longer answers as the one that was described, or None if it does."""
    server = target.server
    if server is not None and server.mode == "embedded" and not ledger.alive(server):
        return f"the server process {server.pid} has ended; its log: {server.log}"
    try:
        ask.metadata()
    except BrimError as error:
        return str(error)
    return None


def variant_folder(target: Target) -> Path | None:
    """What the variant serves, version 1 in the repository; None for a target that Brim does not serve."""
    if target.variant is None or target.server is None or target.server.repository is None:
        return None
    return Path(target.server.repository) / target.variant.name / "1"


def engine_file(target: Target) -> Path | None:
    """The model file for the engine alone; None for known servers and foreign targets."""
    folder = variant_folder(target)
    if folder is None or target.variant is None or target.variant.config.engine == "known":
        return None
    return folder / "model.onnx"
