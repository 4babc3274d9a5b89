"""What the gateway writes into its RouteTable's status, and what it does not write again."""

from typing import Any

import pytest

from splitplane.runtime.gateway.acknowledging import settled

WRITTEN: dict[str, Any] = {"source": "edge", "target": "cloud"}
KNOWN = {**WRITTEN, "bandwidthBytesPerSecond": "5000000", "delayMicroseconds": 2000}


def status(*links: dict[str, Any], ready: int = 2) -> dict[str, Any]:
    return {"acknowledgedGeneration": 3, "stages": [{"name": "a", "ready": ready}], "inFlight": [], "links": [*links]}


@pytest.mark.parametrize(
    "now",
    [
        {"bandwidthBytesPerSecond": "6900000"},
        {"bandwidthBytesPerSecond": "3600000", "delayMicroseconds": 2900},
    ],
)
def test_estimates_that_wander_are_not_written_again(now: dict[str, Any]) -> None:
    assert settled(status({**KNOWN, **now}), status(KNOWN)) == status(KNOWN)


def test_delays_below_a_millisecond_are_alike() -> None:
    quick = {**KNOWN, "delayMicroseconds": 90}
    assert settled(status({**quick, "delayMicroseconds": 800}), status(quick)) == status(quick)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (KNOWN, {**KNOWN, "bandwidthBytesPerSecond": "375000"}),
        (KNOWN, {**KNOWN, "delayMicroseconds": 20_000}),
        (KNOWN, WRITTEN),
        (WRITTEN, KNOWN),
        (KNOWN, {**KNOWN, "target": "elsewhere"}),
    ],
    ids=["rate", "delay", "lost", "back", "another link"],
)
def test_a_change_of_a_link_is_written(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert settled(status(now), status(before)) == status(now)


def test_what_else_changes_is_written_at_once() -> None:
    wandered = {**KNOWN, "bandwidthBytesPerSecond": "6000000"}
    assert settled(status(wandered, ready=1), status(KNOWN)) == status(KNOWN, ready=1)
