"""configs.toml: what is read, what is refused in one line, and what `auto` becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from brim.errors import UsageError
from brim.records import ServingConfig
from serve.configs import DEFAULT_FILE, Mode, choose, default_config, read_configs, resolve


def written(folder: Path, text: str) -> Path:
    file = folder / "configs.toml"
    file.write_text(text)
    return file


def test_the_default_of_brims_own_file_is_b4_one_thread_one_instance_batches_up_to_4_and_no_delay() -> None:
    assert default_config(read_configs(None)) == ServingConfig(
        name="b4",
        engine="onnxruntime",
        backend="auto",
        precision="fp32",
        max_batch=4,
        preferred_batches=(),
        queue_delay_us=0,
        max_queue_size=0,
        queue_timeout_us=0,
        instances=1,
        threads=1,
        engine_options={},
    )


def test_every_key_that_a_config_can_have_is_explained_in_brims_own_file() -> None:
    text = DEFAULT_FILE.read_text()
    keys = set(ServingConfig.__dataclass_fields__) - {"name"}
    assert {key for key in keys if f"#   {key} = " not in text} == set()


def test_a_file_is_read_in_its_order_and_its_first_config_is_the_default(tmp_path: Path) -> None:
    configs = read_configs(written(tmp_path, "[wide]\nmax_batch = 32\n[b1]\nmax_batch = 1\n"))
    assert list(configs) == ["wide", "b1"]
    assert default_config(configs) == ServingConfig(name="wide", max_batch=32)


def test_every_key_arrives_in_the_record(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[full]\nengine = "onnxruntime"\nbackend = "python"\nprecision = "fp16"\nmax_batch = 16\n'
        "preferred_batches = [4, 16]\nqueue_delay_us = 500\nmax_queue_size = 64\nqueue_timeout_us = 9000\n"
        'instances = 2\nthreads = 3\n[full.engine_options]\n"session.intra_op.allow_spinning" = "1"\n',
    )
    assert read_configs(file)["full"] == ServingConfig(
        name="full",
        engine="onnxruntime",
        backend="python",
        precision="fp16",
        max_batch=16,
        preferred_batches=(4, 16),
        queue_delay_us=500,
        max_queue_size=64,
        queue_timeout_us=9000,
        instances=2,
        threads=3,
        engine_options={"session.intra_op.allow_spinning": "1"},
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[b4]\nmax_bach = 4", "unknown key 'max_bach'; did you mean 'max_batch'?"),
        ('[b4]\nname = "b5"', "unknown key 'name'"),
        ("[b4]\nmax_batch = '4'", "max_batch: expected a whole number"),
        ("[b4]\nmax_batch = true", "max_batch: expected a whole number"),
        ("[b4]\nmax_batch = 0", "max_batch is 0, must be >= 1"),
        ("[b4]\nmax_batch = 3000000000", "more than Triton can hold (2147483647)"),
        ("[b4]\nmax_batch = 4\nmax_batch = 5", "not TOML"),
        ("[b4]\nengine = 'onnx'", "'onnx' is not allowed; did you mean"),
        ("[b4]\nengine = 'known'", "leave engine out"),
        ("[b4]\nbackend = 'tensorrt_plan'", "backend tensorrt_plan does not run engine onnxruntime"),
        ("[b4]\nengine = 'torch'\nbackend = 'onnxruntime'", "backend onnxruntime does not run engine torch"),
        ("[b4]\npreferred_batches = [8]", "preferred batch [8] is not between 1 and max_batch 4"),
        ("[b4]\npreferred_batches = [4, 4]", "names a batch twice"),
        ("[b4]\npreferred_batches = [2]", "caps every batch at 2 while queue_delay_us is 0; add 4 to it"),
        ("[b4]\nqueue_delay_us = 500\nqueue_timeout_us = 500", "make it longer"),
        ("[b__4]", "config 'b__4': use a-z, 0-9"),
        ("b4 = 3", "b4 = 3 stands outside a table"),
        ("# nothing", "holds no config"),
    ],
)
def test_a_wrong_or_contradictory_config_is_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        read_configs(file)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


def test_a_preferred_batch_below_the_largest_is_fine_where_batches_may_wait(tmp_path: Path) -> None:
    file = written(tmp_path, "[b4]\npreferred_batches = [2]\nqueue_delay_us = 100")
    assert read_configs(file)["b4"].preferred_batches == (2,)


@pytest.mark.parametrize("bad", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UsageError, match="name a TOML file with --configs"):
        read_configs(tmp_path / bad)


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe[\x00")
    with pytest.raises(UsageError, match="not TOML"):
        read_configs(tmp_path / "c.toml")


def test_an_unknown_config_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no config 'b4x3'; did you mean 'b4x2'?"):
        choose(read_configs(None), "b4x3")


@pytest.mark.parametrize(
    ("mode", "backend"), [("embedded", "python"), ("docker", "onnxruntime"), ("remote", "onnxruntime")]
)
def test_backend_auto_is_python_in_the_embedded_server_and_native_elsewhere(mode: Mode, backend: str) -> None:
    assert resolve(ServingConfig(name="b4"), mode=mode, known=False).backend == backend


def test_a_known_server_has_engine_known_and_backend_python_and_keeps_the_rest() -> None:
    config = ServingConfig(name="b4d", queue_delay_us=2000, instances=2)
    assert resolve(config, mode="embedded", known=True) == ServingConfig(
        name="b4d", queue_delay_us=2000, instances=2, engine="known", backend="python"
    )


@pytest.mark.parametrize(
    ("config", "mode", "known", "said"),
    [
        (ServingConfig(name="c", backend="onnxruntime"), "embedded", False, "no backend onnxruntime .* embedded"),
        (ServingConfig(name="c", backend="python"), "docker", False, "no backend python for models in mode docker"),
        (ServingConfig(name="c", engine="torch"), "embedded", False, "which engine torch does not run"),
        (
            ServingConfig(name="c", engine="tensorrt", backend="tensorrt_plan"),
            "docker",
            False,
            "which engine tensorrt does not run",
        ),
        (ServingConfig(name="c"), "docker", True, "cannot be served in mode docker"),
        (ServingConfig(name="c", threads=2), "embedded", True, "sets threads, but a known server has no engine"),
        (ServingConfig(name="c", precision="fp16"), "embedded", True, "sets precision"),
        (ServingConfig(name="c", engine_options={"a": "b"}), "embedded", True, "sets engine_options"),
        (ServingConfig(name="c", backend="onnxruntime"), "embedded", True, "runs no known server"),
    ],
)
def test_what_cannot_be_served_there_is_refused_in_one_line(
    config: ServingConfig, mode: Mode, known: bool, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        resolve(config, mode=mode, known=known)
    assert "\n" not in str(refused.value)
