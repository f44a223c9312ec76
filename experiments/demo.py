"""`brim demo`: export a small network, serve it, load it for one window by each generator, stop the server again.

Everything goes to <out>/demo/, so that a server that is up in <out> stays the current one.
"""

from __future__ import annotations

from pathlib import Path

from brim import layout
from brim.cli import verb
from brim.say import Say
from experiments.measure import ledger, targets
from experiments.measure.cli import Answers, ending, finish, tell
from experiments.measure.run import Request, measure
from export.small import export_small
from loadtest.plan import read_plan
from serve import embedded
from serve import ledger as servers
from serve.variants import build, plan_variants


@verb("A first number from a small network, without torch: served, loaded for one window by each generator.")
def demo(say: Say, out: Path) -> int:
    out = out / "demo"
    repository = layout.model_repository()
    card = export_small(out)
    variants = plan_variants([card.name], [], out=out, configs_file=None, mode="embedded")
    for variant in variants:
        build(variant, out=out, repository=repository, viewed=servers.viewed(repository))
    names = [variant.name for variant in variants]
    server = embedded.start(names, out=out, repository=repository, say=say)
    try:
        (wanted,) = targets.wanted(names, "", out)
        target = targets.describe(wanted, {}, {})
        plan = read_plan(None)
        request = Request(
            plan=plan, batch_id=ledger.new_batch_id(), allowed={}, concurrency=target.full, senders=1,
            items_per_request=plan.items_per_request, input_data=None, cross_check=True, figure_loads=1,
        )  # fmt: skip
        answer = measure(target, request, out=out, say=say)
    finally:
        servers.stop(server, out)
    tell(say, answer, target, out)
    say.answer("  next: `make export serve loadtest` measures ResNet-50 and EfficientNet-B3 to saturation")
    say.document(Answers(batch_id=request.batch_id, results=(answer,), failures={}))
    return finish([ending(answer)])


command = demo
