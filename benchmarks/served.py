"""A server of its own for one variant, and load on it: what the benchmarks of serving share.

Writes everything under the folder that it is given: the variant, the server's folder, the payload, each load.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brim import codec, disk, environment, layout
from brim.errors import BrimError, Lost
from brim.records import LoadPoint, Server, Target, Variant
from brim.say import Say
from loadtest import payload, target
from loadtest.driver import LoadSpec
from loadtest.sender_driver import SenderDriver
from serve import embedded
from serve.variants import build

READY_WITHIN_S = 120.0
LONGEST_S = 1200.0
TIMEOUT_S = 30.0
SAMPLES = 64  # kept answers, as in any measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One variant on a live server."""

    folder: Path
    server: Server
    variant: Variant
    target: Target
    payload: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of loads

    @property
    def logs(self) -> Path:
        """Where its instances log what they execute."""
        return layout.server_folder(self.folder, self.server.id)


@contextlib.contextmanager
def served(variant: Variant, folder: Path, *, models: Path) -> Iterator[Served]:
    """The variant on a server of its own for the length of the block; `models` is the --out that it was exported to."""
    repository = disk.make_folder(folder / "model_repository")
    build(variant, out=models, repository=repository, viewed=())
    say = Say(quiet=True)
    with embedded.for_a_while(
        [variant.name], out=folder, repository=repository, say=say, wait_s=READY_WITHIN_S
    ) as server:
        described = target.describe(server.http, variant.name, allowed={}, variant=variant, server=server, shapes={})
        pool = payload.prepare(described, folder / "payload", items_per_request=1, input_data=None, seed=0)
        yield Served(folder=folder, server=server, variant=variant, target=described, payload=pool)


def load_spec(on: Served, concurrency: int, *, seconds: float) -> LoadSpec:
    """A load by Brim's sender, with rows and status and length checks, in a folder of its own."""
    folder = disk.make_folder(on.folder / f"load-{next(on.numbers)}")
    return LoadSpec(
        url=on.target.url, model=on.target.model, version="", point=LoadPoint(concurrency=concurrency),
        payload=str(on.payload), folder=str(folder), rows=str(folder / "requests"), first_worker=0,
        seconds=seconds, timeout_s=TIMEOUT_S, drain_s=TIMEOUT_S, samples=SAMPLES,
    )  # fmt: skip


def hold(on: Served, concurrency: int, *, warm_s: float, seconds: float) -> tuple[int, int]:
    """Keep so many requests in flight; gives the bounds (CLOCK_MONOTONIC ns) of the stretch after warm-up.

    Lost unless every request ended well.
    """
    spec = load_spec(on, concurrency, seconds=LONGEST_S)
    load = SenderDriver().start(spec, Path(spec.folder))
    try:
        time.sleep(warm_s)
        start_ns = time.monotonic_ns()
        time.sleep(seconds)
        end_ns = time.monotonic_ns()
    finally:
        load.stop()
        result = load.finish()
    if result.ended != "stopped" or result.ok < result.sent:
        raise Lost(f"a load was no good: {result.ended} {result.reason} {dict(result.errors)}")
    return start_ns, end_ns


def keep(out: Path, name: str, figures: Any) -> Path:
    """The figures of one benchmark and the machine they are of, in <out>/bench/<utc>-<name>.json."""
    now = datetime.now(UTC)
    document = {
        "schema": 1,
        "utc": now.isoformat(timespec="seconds"),
        "environment": codec.to_plain(environment.describe({})),
        name: codec.to_plain(figures),
    }
    file = disk.make_folder(out / "bench") / f"{now:%Y%m%dt%H%M%Sz}-{name}.json"
    return disk.save_text(file, json.dumps(document, indent=1) + "\n")


def outcome(main: Callable[[Sequence[str]], int]) -> int:
    """The exit code of a benchmark run from the command line; a refusal or a command that failed is told in one line.

    A signal ends it like Ctrl-C, so that its server is stopped and its folder goes.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
    except (BrimError, subprocess.SubprocessError) as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BrimError) else Lost.exit_code
