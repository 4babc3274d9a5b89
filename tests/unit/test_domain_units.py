"""Kubernetes' quantities, requests and instants as numbers."""

from decimal import Decimal
from typing import Any

import pytest

from splitplane.controller.handlers import lean_pod
from splitplane.domain.quantities import parse_quantity
from splitplane.domain.resources import pod_requests
from splitplane.domain.times import instant, micro_timestamp, timestamp


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", "2"),
        (2, "2"),
        ("500m", "0.5"),
        ("250u", "0.00025"),
        ("100n", "0.0000001"),
        ("64k", "64000"),
        ("3E", str(3 * 10**18)),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("1.5e-3", "0.0015"),
        (".5", "0.5"),
        ("1536Mi", str(1536 * 2**20)),
        ("2.5Gi", str(2.5 * 2**30)),
        ("1Ei", str(2**60)),
        ("-1", "-1"),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "1KiB", "1K", "0x10", "1.2.3", "5Q", "1mm", "five", "\u0665", "1e"])
def test_what_is_no_quantity_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a Kubernetes quantity, such as 2, 500m or 1\.5Gi"):
        parse_quantity(text)


def container(cpu: str, **more: Any) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}


SIDECAR = container("500m", restartPolicy="Always")


@pytest.mark.parametrize(
    ("spec", "cores"),
    [
        ({"containers": []}, "0"),
        ({"containers": [container("1"), container("250m")]}, "1.25"),
        ({"containers": [container("1")], "initContainers": [container("3"), container("2")]}, "3"),
        ({"containers": [container("4")], "initContainers": [SIDECAR, container("3")]}, "4.5"),
        ({"containers": [container("1")], "initContainers": [SIDECAR, container("3")]}, "3.5"),
        ({"containers": [container("1")], "initContainers": [container("3"), SIDECAR]}, "3"),
        ({"containers": [container("1")], "overhead": {"cpu": "100m", "memory": "64Mi"}}, "1.1"),
        ({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}}, "3"),
        ({"containers": [container("1")], "resources": {"limits": {"cpu": "3"}}, "overhead": {"cpu": "1"}}, "2"),
    ],
)
def test_a_pods_requests_are_counted_as_the_scheduler_counts_them(spec: dict[str, Any], cores: str) -> None:
    pod = {"metadata": {"name": "p"}, "spec": spec}
    assert pod_requests(pod).get("cpu", 0) == Decimal(cores)
    assert pod_requests(lean_pod(pod)) == pod_requests(pod)


def test_instants_survive_being_written_to_the_second() -> None:
    assert timestamp(1_700_000_000.9) == "2023-11-14T22:13:20Z"
    assert micro_timestamp(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"
    assert instant(micro_timestamp(1_700_000_000.25)) == 1_700_000_000.25
    assert instant("2023-11-14T23:13:20+01:00") == 1_700_000_000
    assert instant(None) is None
    assert instant("") is None
