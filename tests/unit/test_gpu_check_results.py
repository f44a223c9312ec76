"""The answers of a gpu-check, from a journal made by hand; the rates of the networks are the article's on a P40."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from brim import codec
from brim.records import Environment
from experiments.gpu_check import tables
from experiments.gpu_check.cells import (
    CONVOLUTION,
    DEPTHWISE,
    EFFICIENTNET,
    LAYERS,
    RESNET,
    Cell,
    Entry,
    Mode,
    Timing,
)
from experiments.gpu_check.host import Host
from experiments.gpu_check.results import GpuCheck, conclude

HOST = Host(
    device="cuda",
    environment=Environment(
        machine={"gpu": "Tesla P40", "driver": "580.1"}, software={"torch": "2.11", "cuda": "13.0", "timm": "1.0"}
    ),
    gpu_uuid="GPU-1",
)


def took(ms: float, *, spread: float = 0.0) -> Timing:
    return Timing(
        median_ms=ms, min_ms=ms * (1 - spread), q1_ms=ms * (1 - spread), q3_ms=ms * (1 + spread),
        max_ms=ms * (1 + spread), repeats=25, steps_per_repeat=1, soak_s=2.0, flat=True,
    )  # fmt: skip


def network(subject: str, batch: int, pixels: int = 224, mode: Mode = "eager") -> Cell:
    return Cell(
        kind="network", subject=subject, sizes=(pixels,), precision="fp32", layout="nchw", mode=mode, batch=batch
    )


def ran(subject: str, batch: int, images_per_s: float, pixels: int = 224, spread: float = 0.0) -> Entry:
    timing = took(batch / images_per_s * 1e3, spread=spread)
    return Entry(cell=network(subject, batch, pixels), outcome="ok", timing=timing, gpu_uuid="GPU-1")


ARTICLE = (
    ran(RESNET, 16, 416),
    ran(EFFICIENTNET, 16, 268),
    ran(RESNET, 1024, 511),
    ran(EFFICIENTNET, 512, 296),
    ran(RESNET, 512, 480),
    ran(EFFICIENTNET, 256, 290),
    Entry(cell=network(RESNET, 2048), outcome="oom", reason="OutOfMemoryError: CUDA | out of memory"),
    Entry(cell=network(EFFICIENTNET, 1024), outcome="oom"),
)


def concluded(journal: Sequence[Entry], plan: Sequence[Cell] = ()) -> GpuCheck:
    return conclude(plan, journal, HOST)


def test_the_articles_rates_give_its_ratios_1_55_at_equal_batch_and_1_73_filled() -> None:
    ratios = {ratio.claim: ratio for ratio in concluded(ARTICLE).ratios}
    assert ratios["equal_batch"].ratio == pytest.approx(1.55, abs=0.005)
    assert ratios["filled"].ratio == pytest.approx(1.73, abs=0.005)
    assert (ratios["filled"].resnet_batch, ratios["filled"].efficientnet_batch) == (1024, 512)
    assert (ratios["filled"].resnet_images_per_s, ratios["filled"].efficientnet_images_per_s) == pytest.approx(
        (511, 296)
    )


def test_resolutions_are_compared_like_with_like_and_at_each_networks_own() -> None:
    journal = (*ARTICLE, ran(EFFICIENTNET, 16, 104, 300), ran(RESNET, 16, 208, 300))
    equal = [r for r in concluded(journal).ratios if r.claim == "equal_batch"]
    pixels = {(r.resnet_pixels, r.efficientnet_pixels): r.ratio for r in equal}
    assert pixels == pytest.approx({(224, 224): 416 / 268, (300, 300): 2.0, (224, 300): 4.0})


def test_a_filled_ratio_is_marked_so_far_while_either_network_can_still_grow() -> None:
    def filled(plan: Sequence[Cell], journal: Sequence[Entry]) -> bool:
        return next(r.complete for r in concluded(journal, plan).ratios if r.claim == "filled")

    assert filled([network(RESNET, 4096)], ARTICLE)  # behind the 2048 that did not fit: will not run
    assert not filled([network(RESNET, 2048)], ARTICLE[:6])
    assert filled([network(RESNET, 4096, mode="compiled")], ARTICLE)  # another series


def test_the_quartiles_of_a_ratio_set_the_slow_one_against_the_fast_one() -> None:
    journal = [ran(RESNET, 16, 400, spread=0.25), ran(EFFICIENTNET, 16, 200)]
    assert concluded(journal).ratios[0].quartiles == pytest.approx((2 / 1.25, 2 / 0.75))


def test_networks_of_different_ways_to_run_are_not_compared() -> None:
    other = Entry(cell=network(EFFICIENTNET, 16, mode="compiled"), outcome="ok", timing=took(10.0))
    assert concluded([ran(RESNET, 16, 416), other]).ratios == ()


def test_the_best_batch_is_the_fastest_not_the_largest() -> None:
    (best,) = concluded([ran(RESNET, 256, 500), ran(RESNET, 64, 100), ran(RESNET, 512, 490)]).best
    assert (best.batch, best.largest_batch) == (256, 512)
    assert best.images_per_s == pytest.approx(500)


def test_the_best_of_several_shapes_is_the_ceiling_of_its_precision() -> None:
    journal = [
        Entry(
            cell=Cell(kind="matmul", subject="square", sizes=(n, n, n), precision="fp16"), outcome="ok", timing=took(ms)
        )
        for n, ms in ((1000, 2.0), (2000, 4.0), (500, 1.0))
    ]
    (ceiling,) = concluded(journal).ceilings
    assert (ceiling.what, ceiling.unit) == ("fp16", "FLOP/s")
    assert ceiling.per_s == pytest.approx(16e9 / 4e-3)


def layer(name: str, ms: float) -> Entry:
    cell = Cell(kind="layer", subject=name, sizes=LAYERS[name], precision="fp32", layout="nchw", batch=1)
    return Entry(cell=cell, outcome="ok", timing=took(ms))


def test_the_p40_roofline_makes_the_depthwise_layer_15_times_slower_and_each_layer_reaches_its_ceiling() -> None:
    """11.76 TFLOP/s, 347 GB/s: arithmetic bounds the convolution (48 us), memory the depthwise layer (724 us)."""
    peak, bandwidth = 11.76e12, 347e9
    square = Cell(kind="matmul", subject="square", sizes=(1000, 1000, 1000), precision="fp32")
    copy = Cell(kind="copy", subject="d2d", sizes=(1000**3,), precision="bytes")
    journal = [
        Entry(cell=square, outcome="ok", timing=took(2e9 / peak * 1e3)),
        Entry(cell=copy, outcome="ok", timing=took(2e9 / bandwidth * 1e3)),
        layer(DEPTHWISE, 62_810_000 * 4 / bandwidth * 1e3),
        layer(CONVOLUTION, 2 * 282_240_000 / peak * 1e3),
    ]
    (pair,) = concluded(journal).layer_pairs
    assert (pair.convolution.median_ms, pair.depthwise.median_ms) == pytest.approx((0.048, 0.724), rel=0.01)
    assert pair.ratio == pytest.approx(15, abs=0.15)
    assert (pair.convolution.flop_share, pair.depthwise.bytes_share) == pytest.approx((1.0, 1.0))
    assert pair.depthwise.flop_share == pytest.approx(2.247 / 33.9, rel=0.01)  # its intensity over the ridge


def test_without_ceilings_a_layer_has_its_time_but_no_share() -> None:
    (pair,) = concluded([layer(CONVOLUTION, 1.0), layer(DEPTHWISE, 3.0)]).layer_pairs
    assert pair.ratio == pytest.approx(3.0)
    assert pair.convolution.flop_share is None and pair.depthwise.bytes_share is None


def test_the_document_shows_rates_refusals_and_ratios_with_device_and_resolution() -> None:
    text = tables.markdown(concluded(ARTICLE))
    assert "ResNet-50 over EfficientNet-B3, images/s, on Tesla P40" in text
    assert "| both 224 | eager | fp32 nchw | equal batch 16 | 416 | 268 | 1.55 | 1.55 to 1.55 |" in text
    assert "| both 224 | eager | fp32 nchw | filled (1024 / 512) | 511 | 296 | 1.73 | 1.73 to 1.73 |" in text
    assert "| 1024 | oom | 511 |" in text
    assert "| 2048 | - | oom |" in text
    assert "CUDA / out of memory" in text  # a bar would break the table
    assert "Complete: 8 cells, 2 of them without a figure." in text


def test_the_document_of_an_empty_journal_says_what_is_left() -> None:
    text = tables.markdown(concluded([], [network(RESNET, 16), network(RESNET, 64)]))
    assert "Not complete: 0 cells done, 2 left" in text
    assert text.count("None yet.") == 5


def test_the_closing_lines_name_device_resolution_and_both_rates() -> None:
    line = tables.summary(concluded(ARTICLE)).splitlines()[0]
    assert line == (
        "ResNet-50@224 over EfficientNet-B3@224 on Tesla P40, eager fp32 nchw, equal batch 16: 1.55x "
        "(416 against 268 images/s)"
    )


def test_the_json_document_has_a_schema_and_comes_back_equal() -> None:
    result = concluded(ARTICLE)
    text = codec.to_json(result)
    assert json.loads(text)["schema"] == codec.SCHEMA
    assert codec.from_json(GpuCheck, text, where="gpu-check.json") == result


def test_figures_of_another_driver_or_torch_go_to_another_folder_but_another_card_of_the_kind_does_not() -> None:
    def machine_id(uuid: str = "GPU-1", **changed: str) -> str:
        machine = {k: changed.get(k, v) for k, v in HOST.environment.machine.items()}
        software = {k: changed.get(k, v) for k, v in HOST.environment.software.items()}
        return Host(
            device="cuda", environment=Environment(machine=machine, software=software), gpu_uuid=uuid
        ).machine_id

    assert machine_id().startswith("tesla-p40-")
    assert machine_id() == machine_id(uuid="GPU-2")
    assert len({machine_id(), machine_id(driver="580.2"), machine_id(torch="2.12"), machine_id(gpu="H200")}) == 4
