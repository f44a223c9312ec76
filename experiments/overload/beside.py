"""A second server of our own beside the one that is measured: the same model under other queue limits.

The measured server is never touched. Writes a repository and the second server's log into the run's folder; the
repository is removed with the server.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from brim import machine
from brim.records import Access, Protocol, ServingConfig, Target, Variant
from brim.say import Say
from experiments.measure import targets
from judging.queue_limits import Limits, Proposal
from serve import embedded
from serve.variants import build

WAIT_S = 300.0


def why_not(target: Target) -> str | None:
    """Why other queue limits cannot be served beside it, or None."""
    if target.variant is None or target.server is None or target.server.mode == "remote":
        return "other queue limits were not measured: Brim does not serve this model"
    if target.server.mode != "embedded":
        return "other queue limits were not measured: only the embedded server is started a second time"
    return None


def configs_beside(config: ServingConfig, proposal: Proposal) -> list[ServingConfig]:
    """No limits at all, those proposed, and the timeout alone: each unless it is how the model is served already."""
    wanted = {"unlimited": Limits(), "limited": proposal.limited.limits}
    if proposal.timed is not None:
        wanted["timed"] = proposal.timed.limits
    found: dict[Limits, str] = {limits_of(config): ""}
    for word, limits in wanted.items():
        found.setdefault(limits, f"{config.name[:48].rstrip('_-')}-{word}")
    return [
        replace(config, name=name, max_queue_size=limits.max_queue_size, queue_timeout_us=limits.queue_timeout_us)
        for limits, name in found.items()
        if name
    ]


def limits_of(config: ServingConfig) -> Limits:
    return Limits(max_queue_size=config.max_queue_size, queue_timeout_us=config.queue_timeout_us)


@contextlib.contextmanager
def served_beside(
    target: Target, configs: Sequence[ServingConfig], *, out: Path, folder: Path, protocol: Protocol, say: Say
) -> Iterator[list[Target]]:
    """The target's model under each of these configs, on one more server for the length of the block."""
    assert target.variant is not None and target.server is not None  # see why_not
    variants = [Variant(model=target.variant.model, config=config) for config in configs]
    embedded.require_shared_memory(variants)
    repository = folder / "repository"
    try:
        for variant in variants:
            build(variant, out=out, repository=repository, viewed=(), gpu=machine.nvidia_driver_answers())
        names = [variant.name for variant in variants]
        with embedded.for_a_while(
            names, out=folder, repository=repository, say=say, wait_s=WAIT_S, cpus=target.server.cpus
        ) as server:
            url = (server.grpc or "") if protocol == "grpc" else server.http
            found = [targets.Wanted(model=name, url=url, server=server) for name in names]
            yield [targets.describe(one, {}, {}, Access()) for one in found]
    finally:
        shutil.rmtree(repository, ignore_errors=True)
