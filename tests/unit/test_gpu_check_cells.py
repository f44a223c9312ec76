"""Which cells a gpu-check has, how much work each is, and which one is next."""

from __future__ import annotations

import pytest

from brim import codec
from brim.errors import InvalidRecord
from experiments.gpu_check.cells import (
    CONVOLUTION,
    DEPTHWISE,
    EFFICIENTNET,
    LAYERS,
    RESNET,
    Cell,
    Entry,
    Outcome,
    Telemetry,
    Timing,
    layer_macs,
    left,
    limit_s,
    next_cell,
    plan,
)

ONE_MS = Timing(
    median_ms=1.0, min_ms=1.0, q1_ms=1.0, q3_ms=1.0, max_ms=1.0, repeats=20, steps_per_repeat=1, soak_s=2.0, flat=True
)  # fmt: skip


def network(batch: int, subject: str = RESNET) -> Cell:
    return Cell(kind="network", subject=subject, sizes=(224,), precision="fp16", layout="nhwc", batch=batch)


def layer(name: str, batch: int = 1) -> Cell:
    return Cell(kind="layer", subject=name, sizes=LAYERS[name], precision="fp32", layout="nchw", batch=batch)


def ended(cell: Cell, outcome: Outcome) -> Entry:
    return Entry(cell=cell, outcome=outcome, timing=ONE_MS if outcome == "ok" else None)


def test_both_layers_of_the_pair_have_282_240_000_multiply_accumulates_per_image() -> None:
    assert layer_macs(layer(CONVOLUTION)) == layer_macs(layer(DEPTHWISE)) == 282_240_000
    assert layer(CONVOLUTION, batch=16).flop == 2 * 16 * 282_240_000


def test_the_pairs_flop_per_byte_in_fp32_is_196_8_and_2_25() -> None:
    """717,200 and 62,810,000 elements read and written once, four bytes each."""
    assert (layer(CONVOLUTION).moved_bytes, layer(DEPTHWISE).moved_bytes) == (4 * 717_200, 4 * 62_810_000)
    intensity = [layer(name).flop / layer(name).moved_bytes for name in (CONVOLUTION, DEPTHWISE)]  # type: ignore[operator]
    assert intensity == pytest.approx([196.8, 2.25], abs=0.05)


def test_weights_do_not_grow_with_the_batch_but_images_do() -> None:
    assert layer(CONVOLUTION, batch=16).moved_bytes == 4 * (16 * 2 * 313_600 + 90_000)


def test_a_device_copy_counts_what_it_reads_and_what_it_writes_and_a_host_copy_counts_once() -> None:
    copies = [Cell(kind="copy", subject=subject, sizes=(1000,), precision="bytes") for subject in ("d2d", "h2d")]
    assert [copy.moved_bytes for copy in copies] == [2000, 1000]


def test_a_matrix_product_counts_two_flop_per_multiply_accumulate() -> None:
    product = Cell(kind="matmul", subject="rectangle", sizes=(3, 5, 7), precision="fp32")
    assert product.flop == 2 * 3 * 5 * 7


def test_the_plan_names_each_cell_once_and_begins_with_the_ceilings() -> None:
    cells = plan()
    assert len(set(cells)) == len(cells)
    kinds = [cell.kind for cell in cells]
    assert set(kinds[: kinds.index("network")]) == {"copy", "matmul"}
    assert {cell.precision for cell in cells if cell.kind == "matmul"} == {"fp16", "bf16", "tf32", "fp32"}


def test_every_way_to_run_has_both_networks_at_both_sizes_and_batches_1_16_64_256_and_then_doublings() -> None:
    batches: dict[tuple[object, ...], list[int]] = {}
    for cell in plan():
        if cell.kind == "network":
            batches.setdefault(cell.series, []).append(cell.batch)
    assert len(batches) == 2 * 2 * 3 * 2  # networks, sizes, precisions, modes
    for found in batches.values():
        assert found[0] == 16
        assert sorted(found)[:4] == [1, 16, 64, 256]
        doubled = sorted(found)[3:]
        assert all(after == 2 * before for before, after in zip(doubled, doubled[1:], strict=False))


def test_only_fp16_networks_are_channels_last() -> None:
    layouts = {(cell.precision, cell.layout) for cell in plan() if cell.kind == "network"}
    assert layouts == {("fp32", "nchw"), ("tf32", "nchw"), ("fp16", "nhwc")}


def test_no_cell_may_take_longer_than_a_part_of_eight_minutes() -> None:
    assert max(limit_s(cell) for cell in plan()) < 8 * 60


def test_a_rerun_goes_on_behind_the_journal() -> None:
    cells = [network(16), network(256), network(64)]
    assert next_cell(cells, []) == network(16)
    assert next_cell(cells, [ended(network(16), "ok")]) == network(256)
    assert next_cell(cells, [ended(cell, "ok") for cell in cells]) is None


@pytest.mark.parametrize("outcome", ["oom", "timeout"])
def test_what_did_not_fit_ends_the_larger_batches_of_its_series_only(outcome: Outcome) -> None:
    cells = [network(256), network(64), network(512), network(512, EFFICIENTNET)]
    assert left(cells, [ended(network(256), outcome)]) == [network(64), network(512, EFFICIENTNET)]


@pytest.mark.parametrize("outcome", ["failed", "crash"])
def test_one_failure_does_not_end_a_series_but_two_do(outcome: Outcome) -> None:
    cells = [network(16), network(64), network(256)]
    assert left(cells, [ended(network(16), outcome)]) == cells[1:]
    assert left(cells, [ended(network(16), outcome), ended(network(64), outcome)]) == []


def test_a_device_of_known_size_gets_every_batch_that_fits_and_exactly_one_that_does_not() -> None:
    """A device that holds 1500 ResNet-50 images or 700 of EfficientNet-B3 at 224, and any number of all else."""
    holds = {(RESNET, 224): 1500, (EFFICIENTNET, 224): 700}
    journal: list[Entry] = []
    while (cell := next_cell(plan(), journal)) is not None:
        limit = holds.get((cell.subject, cell.sizes[0]))
        journal.append(ended(cell, "oom" if limit and cell.batch > limit else "ok"))
    for (subject, pixels), (fits, refused) in {(RESNET, 224): (1024, 2048), (EFFICIENTNET, 224): (512, 1024)}.items():
        mine = [e for e in journal if (e.cell.subject, e.cell.sizes[0], e.cell.precision, e.cell.mode)
                == (subject, pixels, "fp16", "eager")]  # fmt: skip
        assert max(e.cell.batch for e in mine if e.outcome == "ok") == fits
        assert [e.cell.batch for e in mine if e.outcome == "oom"] == [refused]


def test_an_entry_comes_back_from_its_line_equal() -> None:
    entry = Entry(cell=layer(DEPTHWISE), outcome="ok", timing=ONE_MS, peak_bytes=1, idle=Telemetry(sm_mhz=345.0))
    assert codec.from_json(Entry, codec.to_json(entry), where="line") == entry


def test_a_figure_without_a_timing_or_a_timing_out_of_order_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="contradicts"):
        Entry(cell=network(1), outcome="ok")
    with pytest.raises(InvalidRecord, match="out of order"):
        Timing(median_ms=1.0, min_ms=2.0, q1_ms=1.0, q3_ms=1.0, max_ms=2.0, repeats=2, steps_per_repeat=1,
               soak_s=0.0, flat=False)  # fmt: skip


def test_a_cell_whose_sizes_do_not_fit_its_kind_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="do not fit"):
        Cell(kind="matmul", subject="square", sizes=(8192,), precision="fp16")
