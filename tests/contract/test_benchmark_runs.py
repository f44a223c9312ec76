"""The benchmarks of serving and of long runs on the real tritonserver, short: what they print must add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import long, serving_cost
from brim import layout
from brim.records import ServingConfig, Variant
from export.small import TINY, export_small
from serve.configs import resolve

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(not layout.tools_manifest().exists(), reason="no .tools/: `make serve` sets them up"),
]


def test_a_served_batch_of_the_small_network_is_itemised_to_its_whole_period(tmp_path: Path) -> None:
    card = export_small(tmp_path, TINY)
    variant = Variant(model=card, config=resolve(ServingConfig(name="b8", max_batch=8), mode="embedded", known=False))
    [cost] = serving_cost.measure(variant, tmp_path, rounds=1, seconds=1.0)
    parts_us = (cost.copy_in_us, cost.concatenate_us, cost.run_us, cost.copy_out_us, cost.gap_us)
    assert min(parts_us) > 0
    assert sum(parts_us) == pytest.approx(cost.period_us)
    assert 4 < cost.batch <= 8
    assert cost.run_us > cost.copy_in_us + cost.concatenate_us  # views and 100 KB, beside 150 million multiplications
    assert cost.efficiency == pytest.approx(cost.alone_us / (cost.alone_us + cost.added_us))


def test_a_long_run_weighs_every_part_and_every_row() -> None:
    found = long.measure(3 / 60)
    assert [memory.part for memory in found.memory] == ["sender", "parent", "server"]
    assert min(memory.settled_mb for memory in found.memory) > found.buffer_mb
    assert found.rows_mb == pytest.approx(found.requests * 32 / 1e6)
    assert found.requests_per_s == pytest.approx(found.requests / 3, rel=0.2)
