"""What a user may write about the embedded cluster, and what is refused with which words."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from splitplane.local import config as configuration
from splitplane.local.config import ClusterConfig, format_delay, format_rate, parse_delay, parse_rate
from splitplane.local.errors import LocalError
from splitplane.local.manifests import prometheus_config
from splitplane.local.paths import ClusterPaths


def load(tmp_path: Path, text: str) -> ClusterConfig:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return configuration.load(path)


@pytest.mark.parametrize(
    ("text", "bits"), [("3Mbit", 3e6), ("500kbit", 5e5), ("1.5 Gbit", 1.5e9), ("9600bit", 9600.0), ("unlimited", None)]
)
def test_rates_are_read_in_bits_per_second(text: str, bits: float | None) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize(("text", "seconds"), [("5ms", 0.005), ("250us", 0.00025), ("1s", 1.0), ("0", 0.0)])
def test_delays_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_delay(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["3", "3 MB", "fast", "1.2.3Mbit", "-1Mbit", "10bit"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Mbit|take it down|not a number"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["5", "5 minutes", "-1ms", "61s"])
def test_what_is_no_delay_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"5ms|longer than"):
        parse_delay(text)


@given(st.integers(1, 10**7).map(lambda kbit: kbit * 1e3), st.integers(0, 60_000).map(lambda ms: ms / 1e3))
def test_a_printed_link_reads_back_as_it_was(rate: float, delay: float) -> None:
    assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=1e-5)
    assert parse_delay(format_delay(delay)) == pytest.approx(delay, rel=1e-5)


def test_a_stored_configuration_reads_back_as_it_was(tmp_path: Path) -> None:
    wanted = ClusterConfig.model_validate({
        "nodes": [
            {"name": "e", "tier": "edge", "speedFactor": 4, "taints": [{"key": "k", "value": "v"}]},
            {"name": "c", "tier": "cloud", "cpu": 2, "memory": "512Mi", "labels": {"zone": "a"}, "pricePerHour": 0.4},
        ],
        "links": [{"between": ["edge", "cloud"], "rate": "3Mbit", "delay": "5ms", "down": True}],
    })  # fmt: skip
    assert load(tmp_path, configuration.dump(wanted)) == wanted


def test_the_default_cluster_has_tainted_edge_nodes_and_an_untiered_system_node() -> None:
    by_name = {node.name: node for node in configuration.DEFAULT.nodes}
    assert list(by_name) == ["system-1", "edge-1", "edge-2", "cloud-1"]
    assert by_name["system-1"].all_labels == {}
    assert by_name["edge-1"].all_labels == {"splitplane.dev/tier": "edge"}
    assert [taint.effect for taint in by_name["edge-1"].taints] == ["NoSchedule"]
    assert by_name["cloud-1"].taints == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: [{name: a}, {name: a}]", "two nodes 'a'"),
        ("nodes: [{name: A}]", "nodes.0.name"),
        ("nodes: [{name: a, speedFactor: 0.5}]", "nodes.0.speedFactor"),
        ("nodes: [{name: a, memory: lots}]", "nodes.0.memory"),
        ("nodes: [{name: a, colour: red}]", "nodes.0.colour"),
        ("nodes: [{name: a, pricePerHour: .nan}]", "nodes.0.pricePerHour"),
        ("nodes: [{name: a, tier: edge}]\nlinks: [{between: [edge, mars]}]", "no tier 'mars'"),
        ("nodes: [{name: a, tier: edge}]\nlinks: [{between: [edge, edge]}]", "with itself"),
        ("nodes: [{name: a, tier: edge}, {name: b, tier: cloud}]\nlinks: [{between: [edge, cloud], rate: 3}]", "3Mbit"),
        ("nodes: [", "Cannot read"),
    ],
)
def test_a_wrong_configuration_is_refused_by_field_and_rule(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(LocalError) as refused:
        load(tmp_path, text)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "-a", "a" * 41])
def test_a_cluster_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(LocalError, match="cannot be a cluster's name"):
        ClusterPaths.of(name)


def test_the_documented_scrape_configuration_is_the_one_that_the_embedded_cluster_uses() -> None:
    text = (Path(__file__).parents[2] / "docs" / "prometheus.md").read_text()
    block = text.split("```yaml\n")[1].split("```")[0]
    (documented,) = yaml.safe_load(block)["scrape_configs"]
    assert documented == prometheus_config()["scrape_configs"][0]
