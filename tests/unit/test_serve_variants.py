"""Which variants are asked for, and their folders: written whole, linked, left alone, never under a live server."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from brim import disk, layout
from brim.errors import NoResource, UsageError
from brim.records import ModelCard, ServingConfig, Tensor, Variant
from serve.configs import Mode
from serve.executions import read_executions
from serve.known import KINDS, known_server, shared_modules
from serve.variants import build, load_variant, place, plan_variants


def export(out: Path, name: str, content: bytes = b"onnx", precision: str = "fp32") -> ModelCard:
    """What export would have left behind."""
    model = layout.model_folder(out, name) / "model.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.unlink(missing_ok=True)  # export replaces the file, it does not write into it
    model.write_bytes(content)
    card = ModelCard(
        name=name,
        source="brim/demo",
        inputs=(Tensor(name="x", dtype="FP32", shape=(3, 8, 8)),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(10,)),),
        precision=precision,
        weights="seeded:0",
        artifacts={"model.onnx": disk.sha256(model)},
        recipe="r",
    )
    disk.save(layout.card_file(out, name), card)
    return card


def names(out: Path, models: list[str], configs: list[str]) -> list[str]:
    return [v.name for v in plan_variants(models, configs, out=out, configs_file=None, mode="embedded")]


def contents(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Every file with its inode and time: equal = nothing was written."""
    return {
        str(f.relative_to(folder)): (f.stat().st_ino, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    export(tmp_path / "out", "net")
    export(tmp_path / "out", "other-net")
    return tmp_path / "out"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def variant(name: str, out: Path, mode: Mode = "embedded") -> Variant:
    (planned,) = plan_variants([name], [], out=out, configs_file=None, mode=mode)
    return planned


@pytest.fixture
def net(out: Path) -> Variant:
    return variant("net__b4", out)


# ---------------------------------------------------------------------------- which


def test_every_model_is_served_in_every_config_in_the_order_asked_for(out: Path) -> None:
    assert names(out, ["other-net", "net"], ["b8", "b1"]) == [
        "other-net__b8",
        "other-net__b1",
        "net__b8",
        "net__b1",
    ]


def test_without_models_all_that_are_exported_are_served_and_without_configs_the_default_one(out: Path) -> None:
    assert names(out, [], []) == ["net__b4", "other-net__b4"]


def test_a_whole_variants_name_brings_its_own_config_and_nothing_is_served_twice(out: Path) -> None:
    assert names(out, ["net__b8", "net", "null__b64", "net__b4"], []) == ["net__b8", "net__b4", "null__b64"]


def test_a_plan_holds_the_card_and_the_resolved_config(out: Path) -> None:
    [variant] = plan_variants(["net"], ["b4"], out=out, configs_file=None, mode="embedded")
    card = disk.load(ModelCard, layout.card_file(out, "net"))
    assert variant == Variant(model=card, config=ServingConfig(name="b4", backend="python"))


def test_a_known_server_takes_its_parameters_behind_a_colon(out: Path) -> None:
    [variant] = plan_variants(["sleep:service_ms=20"], [], out=out, configs_file=None, mode="embedded")
    assert variant.name == "sleep__b4"
    assert variant.model.engine_parameters == {"elements": 16, "service_ms": 20}
    assert variant.config == ServingConfig(name="b4", engine="known", backend="python")


@pytest.mark.parametrize("kind", KINDS)
def test_every_known_server_is_served_by_its_name_alone_where_the_config_suits_it(
    out: Path, repository: Path, kind: str
) -> None:
    one = variant(f"{kind}__b1", out)
    folder = build(one, out=out, repository=repository, viewed=())
    assert one.model.engine_parameters == KINDS[kind]
    assert {file.name for file in (folder / "1").iterdir()} == {"model.py", *shared_modules(kind)}
    assert load_variant(repository, one.name) == one


def test_reject_bounds_the_queue_that_its_config_leaves_open(out: Path) -> None:
    assert variant("reject:queue=7", out).config.max_queue_size == 7
    assert variant("sleep", out).config.max_queue_size == 0


def test_a_config_that_bounds_the_queue_of_reject_otherwise_is_refused(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[q]\nmax_queue_size = 64\n")

    def planned(asked: str) -> Variant:
        [one] = plan_variants([asked], [], out=out, configs_file=file, mode="embedded")
        return one

    assert planned("reject:queue=64").config.max_queue_size == 64
    with pytest.raises(
        UsageError, match="config q has max_queue_size 64, and reject's queue is 16; serve reject:queue=64"
    ):
        planned("reject")


def test_two_models_that_would_bear_one_name_are_refused(out: Path) -> None:
    with pytest.raises(UsageError, match="'image:bits=8' would be image__b4 a second time, with other parameters"):
        names(out, ["image", "image:bits=8"], [])
    assert names(out, ["image", "image:bits=8__b8"], []) == ["image__b4", "image__b8"]


def test_known_servers_take_and_give_what_their_parameters_say() -> None:
    image = known_server("image", {"pixels": 300})
    assert image.inputs == (Tensor(name="INPUT", dtype="FP32", shape=(3, 300, 300)),)
    assert image.outputs == (Tensor(name="OUTPUT", dtype="FP32", shape=(1,)),)
    assert [known_server("image", {"bits": bits}).inputs[0].dtype for bits in (8, 16, 32)] == ["UINT8", "FP16", "FP32"]
    assert known_server("image", {"bits": 8}).outputs == image.outputs
    null = known_server("null", {})
    assert null.inputs[0].shape == null.outputs[0].shape == (16,)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("nett", "there is no model 'nett'; did you mean 'net'? `brim export nett` makes one"),
        ("nul", "there is no model 'nul'; did you mean 'null'?"),
        ("net__b44", "there is no config 'b44'; did you mean 'b4'?"),
        (
            "net:x=1",
            "only the known servers null, image, sleep, affine, exponential, contended, optimum, stall, reject ",
        ),
        ("sleep:service=20", "sleep has no parameter 'service'; did you mean 'service_ms'?"),
        ("sleep:service_ms", "'service_ms' is not KEY=NUMBER"),
        ("sleep:service_ms=ten", "'service_ms=ten' is not KEY=NUMBER"),
        ("sleep:service_ms=nan", "must be above 0"),
        ("sleep:service_ms=0", "must be above 0"),
        ("null:elements=1.5", "must be a whole number"),
        ("image:pixels=inf", "must be a whole number"),
        ("image:bits=12", "bits is 12, must be 8 (UINT8), 16 (FP16) or 32 (FP32)"),
        ("image:bits=nan", "bits is nan, must be 8"),
        ("null:bits=8", "null has no parameter 'bits'"),
        ("affine:tau0_ms=0", "affine: tau0_ms is 0, must be above 0 and at most 60000"),
        ("affine:alpha_ms=60001", "affine: alpha_ms is 60001, must be above 0 and at most 60000"),
        ("optimum:best=0", "optimum: best is 0, must be a whole number from 1 to 4096"),
        ("optimum:best=2.5", "optimum: best is 2.5, must be a whole number"),
        ("exponential", "exponential serves one item at a time, and config b4 has max_batch 4; it must be 1"),
        ("exponential:seed=-1__b1", "exponential: seed is -1, must be a whole number from 0 to 2147483647"),
        ("stall:at_s=-1", "stall: at_s is -1, must be from 0 to 86400"),
        ("stall:at_s=nan", "stall: at_s is nan, must be from 0"),
        ("stall:stall_ms=inf", "stall: stall_ms is inf, must be above 0"),
        ("reject:queue=0", "reject: queue is 0, must be a whole number from 1"),
        ("contended:queue=4", "contended has no parameter 'queue'"),
        ("null__b4t2", "sets threads, but a known server has no engine"),
        ("../net", "there is no model '../net'"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(out: Path, asked: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        names(out, [asked], [])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_precision_that_the_model_was_not_exported_in_is_refused(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[half]\nprecision = "fp16"\n')
    with pytest.raises(UsageError, match="config half asks for fp16, but net is exported as fp32"):
        plan_variants(["net"], ["half"], out=out, configs_file=file, mode="embedded")


def test_with_nothing_exported_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run `brim export`"):
        names(tmp_path, [], [])


# ---------------------------------------------------------------------------- their folders


def test_an_embedded_variant_is_its_config_its_record_its_model_py_and_a_hard_link_to_the_model(
    net: Variant, out: Path, repository: Path
) -> None:
    folder = build(net, out=out, repository=repository, viewed=())
    assert folder == repository / "net__b4"
    assert set(contents(folder)) == {"config.pbtxt", "variant.json", "1/model.py", "1/stub.py", "1/model.onnx"}
    assert (folder / "1/model.onnx").samefile(layout.model_folder(out, "net") / "model.onnx")
    assert (folder / "1/model.py").read_bytes() == (layout.CHECKOUT / "serve/models/engine.py").read_bytes()
    assert load_variant(repository, "net__b4") == net
    assert [f.name for f in repository.iterdir() if f.is_dir()] == ["net__b4"]


def test_a_docker_variant_is_its_config_its_record_and_the_model_readable_by_the_containers_user(
    out: Path, repository: Path
) -> None:
    one = variant("net__b4", out, mode="docker")
    folder = build(one, out=out, repository=repository, viewed=())
    assert set(contents(folder)) == {"config.pbtxt", "variant.json", "1/model.onnx"}
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "config.pbtxt").stat().st_mode & 0o777 == 0o644


def test_a_known_servers_record_comes_back_whole(repository: Path, out: Path) -> None:
    one = variant("sleep:service_ms=2.5__b8", out)
    folder = build(one, out=out, repository=repository, viewed=())
    assert (folder / "1/model.py").read_bytes() == (layout.CHECKOUT / "serve/models/sleep.py").read_bytes()
    assert load_variant(repository, "sleep__b8") == one


def test_across_file_systems_the_model_is_copied(net: Variant, out: Path, repository: Path) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    folder = build(net, out=out, repository=repository, viewed=(), link=refuse)
    assert (folder / "1/model.onnx").read_bytes() == b"onnx"
    assert (folder / "1/model.onnx").stat().st_nlink == 1


def test_another_failure_of_the_link_is_not_taken_for_another_file_system(tmp_path: Path) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(PermissionError):
        place(tmp_path / "a", tmp_path / "b", refuse)


def test_an_unchanged_variant_is_left_as_it_is_even_under_a_live_server(
    net: Variant, out: Path, repository: Path
) -> None:
    folder = build(net, out=out, repository=repository, viewed=())
    before = contents(folder)
    build(net, out=out, repository=repository, viewed=["net__b4"])
    assert contents(folder) == before


def test_what_python_caches_beside_model_py_is_no_change(net: Variant, out: Path, repository: Path) -> None:
    folder = build(net, out=out, repository=repository, viewed=())
    (folder / "1/__pycache__").mkdir()
    (folder / "1/__pycache__/model.cpython-311.pyc").write_bytes(b"")
    before = contents(folder)
    build(net, out=out, repository=repository, viewed=["net__b4"])
    assert contents(folder) == before


def test_a_copied_model_that_is_the_same_is_no_change(net: Variant, out: Path, repository: Path) -> None:
    folder = build(net, out=out, repository=repository, viewed=())
    export(out, "net")  # the same bytes in a new file
    before = contents(folder)
    build(net, out=out, repository=repository, viewed=())
    assert contents(folder) == before


@pytest.mark.parametrize("change", ["config", "model", "damage"])
def test_a_variant_that_a_live_server_reads_is_not_changed(
    net: Variant, out: Path, repository: Path, change: str
) -> None:
    folder = build(net, out=out, repository=repository, viewed=())
    if change == "config":
        net = replace(net, config=replace(net.config, queue_delay_us=100))
    elif change == "model":
        net = replace(net, model=export(out, "net", b"newer"))
    else:
        (folder / "1/model.py").write_text("raise SystemExit")
    before = contents(folder)
    with pytest.raises(NoResource, match="net__b4 would change, but a live server serves it; `brim down` first"):
        build(net, out=out, repository=repository, viewed=["net__b4"])
    assert contents(folder) == before


def test_a_changed_variant_that_nobody_reads_is_written_anew(net: Variant, out: Path, repository: Path) -> None:
    folder = build(net, out=out, repository=repository, viewed=())
    newer = replace(net, model=export(out, "net", b"newer"))
    build(newer, out=out, repository=repository, viewed=["other-net__b4"])
    assert (folder / "1/model.onnx").read_bytes() == b"newer"
    assert load_variant(repository, "net__b4") == newer
    assert [f.name for f in repository.iterdir() if f.is_dir()] == ["net__b4"]


def test_what_a_killed_build_left_behind_is_swept(net: Variant, out: Path, repository: Path) -> None:
    (repository / ".net__b4.x7").mkdir(parents=True)
    build(net, out=out, repository=repository, viewed=())
    assert [f.name for f in repository.iterdir() if f.is_dir()] == ["net__b4"]


def test_a_build_that_fails_leaves_the_old_variant_and_nothing_half_written(
    net: Variant, out: Path, repository: Path
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = build(net, out=out, repository=repository, viewed=())
    before = contents(folder)
    newer = replace(net, model=export(out, "net", b"newer"))
    with pytest.raises(NoResource, match="no room left"):
        build(newer, out=out, repository=repository, viewed=(), link=full)
    assert contents(folder) == before
    assert [f.name for f in repository.iterdir() if f.is_dir()] == ["net__b4"]


def test_a_model_that_is_not_what_its_card_says_is_refused(net: Variant, out: Path, repository: Path) -> None:
    (layout.model_folder(out, "net") / "model.onnx").write_bytes(b"half a mod")
    with pytest.raises(UsageError, match="not what its card describes .* `brim export net` again"):
        build(net, out=out, repository=repository, viewed=())
    assert not (repository / "net__b4").exists()


def test_a_model_that_is_gone_is_refused(net: Variant, out: Path, repository: Path) -> None:
    (layout.model_folder(out, "net") / "model.onnx").unlink()
    with pytest.raises(UsageError, match="is missing, though its card is there; run `brim export net` again"):
        build(net, out=out, repository=repository, viewed=())


def test_a_repository_that_is_a_file_is_one_line(net: Variant, out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoResource, match="is a file, not a folder"):
        build(net, out=out, repository=tmp_path / "file", viewed=())


def test_an_unknown_variant_is_answered_with_the_nearest(net: Variant, out: Path, repository: Path) -> None:
    build(net, out=out, repository=repository, viewed=())
    with pytest.raises(UsageError, match="there is no variant 'net__b5' in .*; did you mean 'net__b4'?"):
        load_variant(repository, "net__b5")


# ---------------------------------------------------------------------------- the truth that known servers log


def test_executions_of_all_instances_are_read_by_start_without_a_line_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "executions-null__b4.0_0.csv").write_text("10,20,1\n50,60,4\n70,8")
    (tmp_path / "executions-null__b4.0_1.csv").write_text("30,40,2\n")
    (tmp_path / "executions-null__b4-x.0_0.csv").write_text("1,2,3\n")
    assert read_executions(tmp_path, "null__b4") == [(10, 20, 1), (30, 40, 2), (50, 60, 4)]


def test_a_log_that_holds_something_else_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "executions-null__b4.0_0.csv").write_text("10,20,1\n10,,4\n")
    with pytest.raises(UsageError, match=r"0_0.csv:2: '10,,4' is not start_ns,end_ns,items"):
        read_executions(tmp_path, "null__b4")
