"""What is said before a host that is not this machine is loaded: its bounds, by hand."""

from __future__ import annotations

from brim.records import TargetLimit
from experiments.measure import show

URL = "http://198.51.100.7:8000"


def test_with_a_cap_the_announcement_bounds_rate_duration_and_total() -> None:
    limit = TargetLimit(host="198.51.100.7", max_rate_per_s=25.0)
    told = show.announcement(URL, "resnet50__b4", limit, loads=4, seconds=150.0)
    assert URL in told and "resnet50__b4" in told
    assert "at most 25.0 requests/s" in told
    assert "at most 4 loads of 150 s" in told
    assert "at most 15,000 requests" in told, "25 a second for four times 150 s"
    assert "\n" not in told


def test_without_a_cap_the_announcement_claims_no_bound_that_there_is_not() -> None:
    told = show.announcement(URL, "m", TargetLimit(host="198.51.100.7"), loads=2, seconds=120.0)
    assert "no cap on the rate" in told and "no cap on the total" in told
    assert "at most 2 loads of 120 s" in told
    assert "requests/s" not in told and "requests" not in told
