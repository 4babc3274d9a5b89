"""The agent's small pure parts: images, admission, addresses, probes' thresholds, configuration."""

import json
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from splitplane.local.agent import admission, config, images, metrics
from splitplane.local.agent.addresses import AddressPool
from splitplane.local.agent.errors import ConfigError, StartError
from splitplane.local.agent.probes import Counter


@pytest.mark.parametrize(
    "image",
    [
        "splitplane/runtime",
        "splitplane/runtime:1.2",
        "ghcr.io/splitplane/runtime:1",
        "localhost:5000/x/splitplane/runtime@sha256:00ff",
    ],
)
def test_an_image_is_known_by_its_repository(image: str, tmp_path: Path) -> None:
    assert images.resolve(image, {"splitplane/runtime": tmp_path}) == tmp_path


@pytest.mark.parametrize("image", ["nginx", "notsplitplane/runtime", "splitplane/runtime2:1", "splitplane/runtime/x"])
def test_other_images_are_refused_with_what_is_there(image: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="it has splitplane/runtime"):
        images.resolve(image, {"splitplane/runtime": tmp_path})


def asking(cpu: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}


def test_a_pod_is_refused_by_what_is_short() -> None:
    room = {"cpu": "4", "memory": "1Gi", "pods": "3"}
    assert admission.refusal(asking("2"), [asking("2")], room) is None
    short = admission.refusal(asking("2100m"), [asking("2")], room)
    assert short is not None
    assert short.reason == "OutOfcpu"
    assert "requested: 2100, used: 2000, capacity: 4000" in short.message
    many = admission.refusal(asking("0"), [asking("0")] * 3, room)
    assert many is not None
    assert many.reason == "OutOfpods"


def test_addresses_leave_out_network_and_node_and_come_back_last() -> None:
    pool = AddressPool(IPv4Network("127.9.0.0/29"))
    first = pool.take()
    assert first == "127.9.0.2"
    pool.give_back(first)
    assert [pool.take() for _ in range(5)] == [f"127.9.0.{n}" for n in (3, 4, 5, 6, 2)]
    with pytest.raises(ValueError, match="no free pod address"):
        pool.take()


def test_addresses_that_a_former_agent_gave_stay_given() -> None:
    pool = AddressPool(IPv4Network("127.9.0.0/16"), ["127.9.0.2", "127.9.0.5"])
    assert pool.take() == "127.9.0.6"


def test_a_probe_turns_at_its_thresholds_of_consecutive_results() -> None:
    counter = Counter({"failureThreshold": 2, "successThreshold": 3}, initially=True)
    verdicts = []
    for ok in (False, True, False, False, True, True, False, True, True, True):
        counter.add(ok)
        verdicts.append(counter.verdict)
    assert verdicts == [True, True, True, False, False, False, False, False, False, True]


def described(tmp_path: Path, **more: Any) -> Path:
    path = tmp_path / "agent.json"
    fields = {
        "node": "edge-1", "cpu": "4", "memory": "8Gi", "kubeconfig": "k", "stateDir": str(tmp_path),
        "nodeAddress": "127.9.0.1", "podCidr": "127.9.0.0/16", "kubeletPort": 1, "metricsPort": 2, "servingCert": "c",
        "servingKey": "k", "clientCa": "a", "apiServer": "https://127.0.0.1:1", "clusterCa": "a", "pricePerHour": 0.5,
        "startsDir": str(tmp_path / "starts"),
    }  # fmt: skip
    path.write_text(json.dumps({**fields, **more}))
    return path


def test_a_wrong_configuration_names_the_field(tmp_path: Path) -> None:
    assert config.load(described(tmp_path)).node == "edge-1"
    with pytest.raises(ConfigError, match=r"speedFactor: .*greater than or equal to 1"):
        config.load(described(tmp_path, speedFactor=0.5))
    with pytest.raises(ConfigError, match="colour: Extra inputs"):
        config.load(described(tmp_path, colour="red"))
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        config.load(tmp_path / "agent.json")
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path / "none.json")


def test_the_price_file_wins_and_nonsense_is_no_price(tmp_path: Path) -> None:
    known = config.load(described(tmp_path))
    assert metrics.price(known) == 0.5
    known.price_file.write_text("1.5\n")
    assert metrics.price(known) == 1.5
    known.price_file.write_text("much")
    assert metrics.price(known) is None
