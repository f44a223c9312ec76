"""What a target is, as a server tells it over a real loopback socket."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brim.errors import NotReady, UsageError
from brim.records import Batching, Tensor
from loadtest import target
from tests.fakes import FakeServer

IMAGE = Tensor(name="image", dtype="FP32", shape=(3, -1, -1))


def test_a_batching_model_is_told_without_its_batch_dimension() -> None:
    with FakeServer(max_batch=8, instances=3) as server:
        found = target.describe(server.url, "tiny", allowed={}, shapes={})
    assert found.inputs == (Tensor(name="x", dtype="FP32", shape=(4,)),)
    assert found.outputs == (Tensor(name="y", dtype="FP32", shape=(2,)),)
    assert (found.max_batch, found.instances, found.full) == (8, 3, 48)
    assert (found.server_name, found.item) == ("fake", "item")


def test_a_model_that_does_not_batch_keeps_its_whole_shape() -> None:
    with FakeServer(max_batch=0) as server:
        found = target.describe(server.url, "tiny", allowed={}, shapes={})
    assert (found.inputs[0].shape, found.max_batch, found.full) == ((4,), 0, 2)


def test_open_dimensions_are_filled_from_the_flag() -> None:
    with FakeServer(inputs=[IMAGE]) as server:
        found = target.describe(server.url, "tiny", allowed={}, shapes={"image": (3, 32, 48)})
    assert found.inputs[0].shape == (3, 32, 48)
    assert found.item == "image"


def test_an_open_dimension_without_a_shape_tells_the_exact_flag() -> None:
    with FakeServer(inputs=[IMAGE]) as server, pytest.raises(UsageError, match=r"--shape image:3,\?,\?"):
        target.describe(server.url, "tiny", allowed={}, shapes={})


@pytest.mark.parametrize("shape", [(1, 32, 48), (3, 32), (3, 0, 48), (1, 3, 32, 48)])
def test_a_shape_that_contradicts_the_model_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="does not fit tiny"):
        target.filled([IMAGE], {"image": shape}, "tiny")


def test_a_shape_for_an_unknown_input_names_the_near_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'image'"):
        target.filled([IMAGE], {"imag": (3, 1, 1)}, "tiny")


def test_an_unknown_model_names_the_near_one() -> None:
    with FakeServer() as server, pytest.raises(NotReady, match="no model 'tin'; did you mean 'tiny'"):
        target.describe(server.url, "tin", allowed={}, shapes={})


def test_a_model_that_is_not_ready_brings_the_servers_reason() -> None:
    with (
        FakeServer(ready=False, reason="Internal: numpy 2\nis refused") as server,
        pytest.raises(NotReady, match="tiny is not ready: Internal: numpy 2 is refused"),
    ):
        target.describe(server.url, "tiny", allowed={}, shapes={})


def test_an_unknown_version_names_the_known_ones() -> None:
    with FakeServer() as server, pytest.raises(NotReady, match="no version '7'; known: 1"):
        target.describe(server.url, "tiny", version="7", allowed={}, shapes={})


def test_an_absent_server_is_not_ready_and_names_the_command() -> None:
    with FakeServer() as server:
        url = server.url
    with pytest.raises(NotReady, match="make serve"):
        target.describe(url, "tiny", allowed={}, shapes={})


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs"])
def test_whatever_the_scheme_the_guard_comes_first(scheme: str) -> None:
    with pytest.raises(UsageError, match="--allow-remote"):
        target.describe(f"{scheme}://203.0.113.7:8001", "tiny", allowed={}, shapes={})


def test_optional_inputs_are_left_out() -> None:
    class Optional(FakeServer):
        def _control(self, path: str) -> tuple[int, object]:
            status, answer = super()._control(path)
            if path.endswith("/config"):
                answer["input"] = [{"name": "x"}, {"name": "mask", "optional": True}]
            return status, answer

    inputs = [Tensor(name="x", dtype="FP32", shape=(4,)), Tensor(name="mask", dtype="BOOL", shape=(-1,))]
    with Optional(inputs=inputs) as server:
        assert target.describe(server.url, "tiny", allowed={}, shapes={}).inputs == (inputs[0],)


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ([(3, 224, 224)], "image"),
        ([(224, 224, 3)], "image"),
        ([(1, 224, 224)], "item"),
        ([(224, 3, 224)], "item"),
        ([(3,)], "item"),
        ([(3, 224, 224), (4,)], "item"),
    ],
)
def test_only_images_are_called_images(shapes: list[tuple[int, ...]], word: str) -> None:
    assert target.item_word([Tensor(name="x", dtype="FP32", shape=s) for s in shapes]) == word


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 1),
        ({"instance_group": [{"count": 2}, {"count": 3}]}, 5),
        ({"instance_group": [{"count": 2, "gpus": [0, 1]}]}, 4),
    ],
)
def test_instances_are_summed_over_groups_and_gpus(config: dict[str, object], count: int) -> None:
    assert target.instances(config) == count


def test_the_composing_models_of_an_ensemble_are_told_in_order() -> None:
    steps = [{"model_name": "decode", "model_version": "-1"}, {"model_name": "network"}]
    assert target.steps({"ensemble_scheduling": {"step": steps}}) == ("decode", "network")
    assert target.steps({"max_batch_size": 8}) == ()


def test_an_ensemble_is_full_when_its_neediest_step_is_and_its_last_steps_batches_count() -> None:
    with FakeServer(max_batch=64, instances=1) as server:
        ensemble = target.describe(server.url, server.model, allowed={}, shapes={})
    configs: dict[str, dict[str, object]] = {
        "decode": {"instance_group": [{"count": 5}]},
        "network": {"max_batch_size": 4},
    }
    steps = tuple(target.ensemble_step(name, config) for name, config in configs.items())
    assert [step.full for step in steps] == [10, 8]
    assert replace(ensemble, steps=steps).full == 10
    assert replace(ensemble, steps=steps).last_step == steps[1]
    assert ensemble.last_step.max_batch == 64


def test_a_server_batches_single_requests_only_if_its_configuration_says_so() -> None:
    assert target.batching({"max_batch_size": 8}) is None
    assert target.batching({"max_batch_size": 8, "dynamic_batching": {}}) == Batching()
    told = {
        "preferred_batch_size": [4, 8],
        "max_queue_delay_microseconds": "500",
        "default_queue_policy": {"max_queue_size": 32, "default_timeout_microseconds": "70000"},
    }
    assert target.batching({"dynamic_batching": told}) == Batching(
        preferred=(4, 8), queue_delay_us=500, max_queue_size=32, queue_timeout_us=70_000
    )
