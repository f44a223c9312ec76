"""What serving costs beside `session.run` alone: `python -m benchmarks.serving_cost [--out OUT] [--rounds N]`.

Rounds of [served under full load, the same engine alone at the served batch], by turns. Where a served batch's time
goes is read from the log that the model itself keeps. Reads OUT/models/resnet50 if it was exported; writes
OUT/bench/. Exit code 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.served import Served, hold, keep, outcome, served
from brim import disk, layout
from brim.errors import UsageError
from brim.machine import nvidia_driver_answers
from brim.records import ModelCard, ServingConfig, Variant
from experiments.measure.run import exclusive
from export.small import TINY, export_small
from loadtest.ceiling import run_engine
from serve.configs import resolve
from serve.executions import Itemised, itemised_by_instance

ROUNDS = 5
#: Of each half of a round: over a thousand batches of the small network, some forty of ResNet-50.
TINY_S, RESNET_S = 5.0, 10.0
WARM_S = 1.0
LEAST_EFFICIENCY = 0.95  # of ResNet-50: a batch takes so long that what serving adds must not show
MOST_ADDED_US = 1000.0  # to a batch of the small network
ALONE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One round: means over the batches of a stretch, in microseconds a batch."""

    batch: float  # items
    copy_in_us: float
    concatenate_us: float
    run_us: float
    copy_out_us: float
    gap_us: float  # from a batch's end to the next one's start: the server's own work, and this log's
    period_us: float  # from start to start
    alone_us: float  # the engine alone at this batch, from batch to batch

    @property
    def added_us(self) -> float:
        return self.period_us - self.alone_us

    @property
    def efficiency(self) -> float:
        return self.alone_us / self.period_us


def cost_of(batches: Sequence[Itemised], alone_us: float) -> Cost:
    """The means over consecutive batches of one instance; the last one only bounds the stretch."""
    measured = batches[:-1]
    period_us = (batches[-1].start_ns - batches[0].start_ns) / len(measured) / 1e3
    inside_us = statistics.fmean(b.end_ns - b.start_ns for b in measured) / 1e3
    return Cost(
        batch=statistics.fmean(b.items for b in measured),
        copy_in_us=statistics.fmean(b.copy_in_ns for b in measured) / 1e3,
        concatenate_us=statistics.fmean(b.concatenate_ns for b in measured) / 1e3,
        run_us=statistics.fmean(b.run_ns for b in measured) / 1e3,
        copy_out_us=statistics.fmean(b.copy_out_ns for b in measured) / 1e3,
        gap_us=period_us - inside_us,
        period_us=period_us,
        alone_us=alone_us,
    )


def within(batches: Sequence[Itemised], start_ns: int, end_ns: int) -> list[Itemised]:
    """The batches that began in the stretch."""
    return [batch for batch in batches if start_ns <= batch.start_ns < end_ns]


def measure(variant: Variant, out: Path, *, rounds: int, seconds: float) -> list[Cost]:
    """Rounds of served and alone; every second one begins with the engine alone, so that a drift favours neither."""
    with tempfile.TemporaryDirectory(prefix="brim-bench-") as folder, served(variant, Path(folder), models=out) as on:
        alone_us = _alone_us(on, variant.config.max_batch, seconds)  # warms the file cache; not counted
        costs = []
        for number in range(rounds):
            if number % 2:
                alone_us = _alone_us(on, variant.config.max_batch, seconds)
                batches = _served(on, seconds)
            else:
                batches = _served(on, seconds)
                alone_us = _alone_us(on, round(statistics.fmean(b.items for b in batches)), seconds)
            costs.append(cost_of(batches, alone_us))
        return costs


def _served(on: Served, seconds: float) -> list[Itemised]:
    bounds = hold(on, 2 * on.target.full, warm_s=WARM_S, seconds=seconds)
    (batches,) = itemised_by_instance(on.logs, on.variant.name).values()
    return within(batches, *bounds)


def _alone_us(on: Served, batch: int, seconds: float) -> float:
    config = on.variant.config
    spec = {
        "job": "ceiling", "batch": batch, "seconds": seconds, "engine": config.engine, "threads": config.threads,
        "model": str(on.folder / "model_repository" / on.variant.name / "1" / "model.onnx"),
        "device": "cuda" if nvidia_driver_answers() else "cpu", "options": dict(config.engine_options),
        "inputs": {tensor.name: list(tensor.shape) for tensor in on.variant.model.inputs},
    }  # fmt: skip
    answer = run_engine(spec, on.folder / "alone", python=layout.stub_python(), limit_s=ALONE_LIMIT_S)
    return float(answer["seconds"]) / int(answer["batches"]) * 1e6


def report(name: str, costs: Sequence[Cost]) -> str:
    """A line for each item: the median over the rounds, and from the least to the most."""
    lines = [f"{name}: microseconds a batch of {statistics.median(c.batch for c in costs):.1f}, {len(costs)} rounds"]
    for item in [*(f.name for f in fields(Cost) if f.name != "batch"), "added_us"]:
        values = [getattr(cost, item) for cost in costs]
        told = item.removesuffix("_us").replace("_", " ")
        lines.append(f"  {told:<12} {statistics.median(values):>10,.0f}  ({min(values):,.0f} to {max(values):,.0f})")
    values = [cost.efficiency for cost in costs]
    lines.append(f"  efficiency   {statistics.median(values):>10.3f}  ({min(values):.3f} to {max(values):.3f})")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Both networks, their tables and the bounds."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="where resnet50 was exported to")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    told = parser.parse_args(arguments)
    card_file = layout.card_file(told.out, "resnet50")
    if not card_file.is_file():
        raise UsageError(f"there is no {card_file}; run `brim export resnet50` first")
    with exclusive(), tempfile.TemporaryDirectory(prefix="brim-bench-") as models:
        tiny = measure(_variant(export_small(Path(models), TINY), 8), Path(models), rounds=told.rounds, seconds=TINY_S)
        print(report("tiny__b8", tiny), flush=True)
        resnet = measure(_variant(disk.load(ModelCard, card_file), 4), told.out, rounds=told.rounds, seconds=RESNET_S)
        print(report("resnet50__b4", resnet), flush=True)
    file = keep(told.out, "serving-cost", {"tiny__b8": tiny, "resnet50__b4": resnet})
    added_us, efficiency = statistics.median(c.added_us for c in tiny), statistics.median(c.efficiency for c in resnet)
    held = added_us <= MOST_ADDED_US and efficiency >= LEAST_EFFICIENCY
    print(f"tiny: {added_us:,.0f} us added to a batch, at most {MOST_ADDED_US:,.0f}")
    print(f"resnet50: efficiency {efficiency:.3f}, at least {LEAST_EFFICIENCY}")
    print(f"{'held' if held else 'MISSED'}; kept in {file}")
    return 0 if held else 1


def _variant(card: ModelCard, max_batch: int) -> Variant:
    config = ServingConfig(name=f"b{max_batch}", max_batch=max_batch)
    return Variant(model=card, config=resolve(config, mode="embedded", known=False))


if __name__ == "__main__":
    sys.exit(outcome(main))
