"""Whether an open loop kept up: backlogs whose growth is known by arithmetic, and queues that only wander."""

from __future__ import annotations

import numpy as np
import pytest

from judging.backlog import growth, open_steady
from queueing.arrivals import poisson

SECOND = 1_000_000_000


def served(intended_ns: np.ndarray, service_ns: int) -> np.ndarray:
    """When each request is done by one server that takes one at a time: max(previous done, intended) + service."""
    done, free = np.empty_like(intended_ns), 0
    for n, at in enumerate(intended_ns):
        free = max(free, int(at)) + service_ns
        done[n] = free
    return done


def test_a_server_too_slow_by_a_tenth_leaves_a_tenth_of_what_arrives() -> None:
    intended = np.arange(0, 20 * SECOND, SECOND // 100)
    found = growth(intended, served(intended, SECOND // 90), start_ns=0, end_ns=20 * SECOND)
    assert found.per_s == pytest.approx(10.0, rel=0.02)  # 100/s arrive, 90/s are done
    assert found.p_value < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_a_queue_at_nine_tenths_of_its_capacity_wanders_and_does_not_grow(seed: int) -> None:
    intended = poisson(90.0, 60.0, seed)
    state = open_steady(intended, served(intended, SECOND // 100), start_ns=0, end_ns=60 * SECOND, unsent=0)
    assert not state.unstable, state.reasons


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_beyond_the_capacity_are_found_out(seed: int) -> None:
    intended = poisson(110.0, 30.0, seed)
    state = open_steady(intended, served(intended, SECOND // 100), start_ns=0, end_ns=30 * SECOND, unsent=0)
    assert state.unstable
    assert "does not keep up" in state.reasons[0]


def test_requests_that_were_never_sent_make_it_another_load() -> None:
    intended = np.arange(0, 10 * SECOND, SECOND // 100)
    done = intended + SECOND // 200
    assert open_steady(intended, done, start_ns=0, end_ns=10 * SECOND, unsent=10).unstable is False
    state = open_steady(intended, done, start_ns=0, end_ns=10 * SECOND, unsent=11)
    assert state.unstable and "11 of 1011 requests" in state.reasons[0]


def test_the_first_fifth_is_warm_up() -> None:
    intended = np.arange(0, 10 * SECOND, SECOND // 100)
    assert open_steady(intended, intended + 1, start_ns=0, end_ns=10 * SECOND, unsent=0).from_ns == 2 * SECOND
