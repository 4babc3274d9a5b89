"""The price list of test clusters: what is no price is told of, and takes no other node's price away."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.parser import text_string_to_metric_families

SOURCE = Path(__file__).parents[2] / "hack" / "kind-node" / "node_prices.py"


@pytest.fixture
def node_prices() -> ModuleType:
    """As its pod loads it: one file beside nothing."""
    spec = importlib.util.spec_from_file_location("node_prices", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node(name: str, price: str | None) -> dict[str, object]:
    return {
        "metadata": {"name": name, "annotations": {} if price is None else {"splitplane.dev/price-per-hour": price}}
    }


def samples(text: str) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(text)
    return {(sample.name, sample.labels["node"]): sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("wrong", ["2,40", "", "cheap", "nan", "inf", "-1"])
def test_an_annotation_that_is_no_price_is_told_and_the_other_nodes_keep_theirs(
    node_prices: ModuleType, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [node("edge-1", "0.05"), node("edge-2", wrong), node("cloud-1", "2.40"), node("cloud-2", None)]
    for _ in range(3):
        found = samples(node_prices.exposition(nodes))
        assert found == {
            ("node_total_hourly_cost", "edge-1"): 0.05,
            ("node_total_hourly_cost", "cloud-1"): 2.4,
            ("splitplane_node_price_invalid", "edge-2"): 1.0,
        }
    (record,) = caplog.records
    assert "edge-2" in record.getMessage()
    assert repr(wrong) in record.getMessage()
    nodes[1] = node("edge-2", "0.06")
    assert samples(node_prices.exposition(nodes))["node_total_hourly_cost", "edge-2"] == 0.06
    nodes[1] = node("edge-2", wrong)
    node_prices.exposition(nodes)
    assert len(caplog.records) == 2
