"""`brim demo`: export a small network, serve it, load it for one window by each generator, stop the server again.

Everything goes to <out>/demo/, so that a server that is up in <out> stays the current one.
"""

from __future__ import annotations

from pathlib import Path

import click

from brim import disk, layout
from brim.cli import verb
from brim.errors import Interrupted
from brim.records import Access, Saturation, Variant
from brim.say import Say
from experiments.measure.cli import Answers, ending, finish, tell
from loadtest.plan import LoadPlan, read_plan

_WAIT_S = 120.0


@verb("A first number from a small network, without torch: served, loaded for one window by each generator.")
@click.option("--loads", type=click.Path(path_type=Path), help="Your own loads.toml.")
def demo(say: Say, out: Path, loads: Path | None) -> int:
    # The measuring modules take seconds to import; --help and a wrong option need none of them.
    from experiments.measure.run import exclusive
    from serve import embedded

    plan = read_plan(loads)
    out = out / "demo"
    busy = f"another brim demo is at work in {out}; wait for it"
    with exclusive(), disk.lock(layout.servers(out) / "serve.lock", busy):
        _clean_up(say, out)
        (variant,) = _variants(out)
        repository = layout.model_repository()
        with embedded.for_a_while([variant.name], out=out, repository=repository, say=say, wait_s=_WAIT_S):
            answer, interrupted = _measure(say, out, variant, plan)
    if interrupted is None:
        say.answer("  next: `make export serve loadtest` measures ResNet-50 and EfficientNet-B3 to saturation")
    say.document(Answers(batch_id=answer.batch_id, results=(answer,), failures={}))
    return finish([ending(answer) if interrupted is None else (interrupted.exit_code, interrupted.word)])


def _clean_up(say: Say, out: Path) -> None:
    """What a demo that was killed left behind."""
    from experiments.measure import ledger
    from serve import ledger as servers

    for server_id in servers.sweep(out, layout.model_repository()):
        say.progress(f"{server_id} had ended without being stopped: cleaned up after it")
    for run in ledger.recover(out)[0]:
        say.warn(f"run {run} was cut off by a kill; closed it, what was measured is kept")


def _variants(out: Path) -> list[Variant]:
    """The small network, exported and written as a variant that can be served."""
    from export.small import export_small
    from serve import embedded, ledger
    from serve.variants import build, plan_variants

    repository = layout.model_repository()
    variants = list(plan_variants([export_small(out).name], [], out=out, configs_file=None, mode="embedded"))
    embedded.require_shared_memory(variants)
    for variant in variants:
        build(variant, out=out, repository=repository, viewed=ledger.viewed(repository))
    return variants


def _measure(say: Say, out: Path, variant: Variant, plan: LoadPlan) -> tuple[Saturation, Interrupted | None]:
    from experiments.measure import ledger, targets
    from experiments.measure.progress import Progress
    from experiments.measure.request import Request
    from experiments.measure.run import measure

    (wanted,) = targets.wanted([variant.name], "", out)
    target = targets.describe(wanted, {}, {}, Access())
    request = Request(
        plan=plan, batch_id=ledger.new_batch_id(), allowed={}, concurrency=target.full, senders=1,
        items_per_request=plan.items_per_request, input_data=None, cross_check=True, figure_rounds=1,
    )  # fmt: skip
    with say.live() as update:
        measured = measure(target, request, out=out, say=say, progress=Progress(update))
    assert measured.saturation is not None  # it was asked for
    tell(say, measured.saturation, target, out)
    return measured.saturation, measured.interrupted


command = demo
