"""Whether Brim tells the truth: `python -m benchmarks.truth [--part NAME …] [--out OUT] [--again]`.

Every part is kept in OUT/bench/truth/ as it ends, and not measured again: what was cut off goes on where it was. Ends
with a line for each bound. Exit code 1 if one was missed or a part did not come to its end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.served import outcome
from benchmarks.truth import (
    capacity,
    coverage,
    ladder,
    loadgen,
    network,
    open_loop,
    simulator,
    slo_search,
    slo_truth,
    stall,
)
from benchmarks.truth.journal import Book, Found, finished, forget, journal, table
from brim.errors import BrimError, UsageError

#: Part -> what measures it, in the order in which they build on each other.
PARTS: Mapping[str, Callable[[Book], None]] = {
    "simulator": simulator.run,
    "capacity": capacity.run,
    "ladder": ladder.run,
    "open": open_loop.run,
    "stall": stall.run,
    "slo-truth": slo_truth.run_brim,
    "slo-truth-perf_analyzer": slo_truth.run_perf_analyzer,
    "slo-search": slo_search.run,
    "coverage": coverage.run,
    "network": network.run_small,
    "resnet-below": network.run_resnet_below,
    "resnet-above": network.run_resnet_above,
    "loadgen": loadgen.run,
}


def measure(parts: Sequence[str], out: Path, *, share: float, again: bool) -> dict[str, str]:
    """Every part that has not come to its end: why those that failed did."""
    failed = {}
    for part in parts:
        if again:
            forget(journal(out, share), part)
        found = finished(journal(out, share), part)
        print(f"{part}: {'done before' if found else '…'}", file=sys.stderr, flush=True)
        if found is not None:
            continue
        book = Book(part, out, share=share)
        try:
            PARTS[part](book)
        except (BrimError, subprocess.SubprocessError) as error:  # the other parts do not need this one, or say so
            failed[part] = str(error)
            print(f"  {error}", file=sys.stderr, flush=True)
            continue
        book.close()
    return failed


def report(found: Sequence[Found], failed: Mapping[str, str]) -> str:
    """The table, and what is wrong."""
    lines = [table(found)] if found else []
    lines += [f"{part}: not measured to its end: {why}" for part, why in failed.items()]
    missed, seconds = sum(one.missed for one in found), sum(one.seconds for one in found)
    asked = sum(line.held is not None for one in found for line in one.lines)
    if any(one.share != 1 for one in found):
        lines.append("shortened: these figures say whether every part runs, and nothing else")
    return "\n".join(
        [*lines, f"{missed} of {asked} bounds missed, {len(failed)} parts failed; {seconds / 60:.0f} minutes"]
    )


def main(arguments: Sequence[str]) -> int:
    """The parts that were asked for, and the table of all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="where figures go, and where resnet50 was exported"
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="measure parts that are done, too")
    parser.add_argument("--shortened", type=float, default=1.0, metavar="SHARE", help="of each load, to try the parts")
    told = parser.parse_args(arguments)
    if not 0 < told.shortened <= 1:
        raise UsageError(f"--shortened {told.shortened:g}: must be above 0 and at most 1")
    out = told.out.resolve()
    failed = measure(told.part, out, share=told.shortened, again=told.again)
    each = (finished(journal(out, told.shortened), part) for part in told.part if part not in failed)
    found = [one for one in each if one is not None]
    print(report(found, failed))
    return 1 if failed or any(one.missed for one in found) else 0


if __name__ == "__main__":
    sys.exit(outcome(main))
