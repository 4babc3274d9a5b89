"""What goes wrong ends in a condition and an event that say what to do, and is over when its cause is."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from splitplane.local import binaries, install
from splitplane.local.cluster import Cluster
from tests.support import operator_cases as cases

pytestmark = pytest.mark.integration


def events(ns: cases.Namespace, name: str, reason: str) -> list[str]:
    return [event["message"] for event in ns.events(name) if event["reason"] == reason]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"factory": "narrowing:missing"}, "missing"), ({"weights": "0" * 64}, "sha256")],
    ids=["unknown factory", "wrong sha256"],
)
def test_a_model_that_cannot_be_loaded_says_so_in_its_own_words(
    wrong: dict[str, str], said: str, profiled: cases.Namespace, digest: str
) -> None:
    broken = cases.model(digest)
    if "weights" in wrong:
        broken["weights"]["sha256"] = wrong["weights"]
    else:
        broken["factory"] = wrong["factory"]
    profiled.apply(cases.pipeline("broken", broken, cases.tier("edge")))
    stalled = profiled.wait_condition("broken", "Stalled", "True", "ProfileFailed")
    assert said in stalled["message"].lower()
    assert "Mend spec.model" in stalled["message"]
    assert profiled.condition("broken", "Ready")["reason"] == "ProfileFailed"
    assert len(events(profiled, "broken", "ProfileFailed")) >= 1

    profiled.apply(cases.pipeline("broken", cases.model(digest), cases.tier("edge")))
    profiled.wait_condition("broken", "Ready", "True")
    assert profiled.condition("broken", "Stalled")["status"] == "False"


def test_a_tier_without_nodes_is_named_and_used_once_a_node_is_labelled(
    profiled: cases.Namespace, digest: str, kubectl: Callable[..., str]
) -> None:
    label = f"example.com/{profiled.name}"
    profiled.apply(cases.pipeline("homeless", cases.model(digest), cases.tier("edge", nodeSelector={label: "yes"})))
    stalled = profiled.wait_condition("homeless", "Stalled", "True", "NoNodesForTier")
    assert f"{label}=yes" in stalled["message"]
    assert events(profiled, "homeless", "NoNodesForTier")

    kubectl("label", "node", "edge-1", f"{label}=yes")
    try:
        profiled.wait_condition("homeless", "Ready", "True")
    finally:
        kubectl("label", "node", "edge-1", f"{label}-")


def test_limits_that_no_plan_keeps_are_reported_and_served_as_well_as_possible(
    profiled: cases.Namespace, digest: str
) -> None:
    def limited(cost: str) -> cases.Json:
        limit = {"maxCostPerHour": cost}
        return cases.pipeline("hurried", cases.model(digest), cases.tier("edge"), objectives=limit)

    profiled.apply(limited("0.0001"))
    infeasible = profiled.wait_condition("hurried", "PlanFeasible", "False", "Infeasible")
    assert "spec.objectives" in infeasible["message"]
    profiled.wait_condition("hurried", "Ready", "True")
    assert len(events(profiled, "hurried", "Infeasible")) == 1

    profiled.apply(limited("1"))
    profiled.wait_condition("hurried", "PlanFeasible", "True")


EXPORTER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Type', 'text/plain; version=0.0.4'); self.end_headers()
        self.wfile.write(os.environ['SAMPLES'].encode())
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((os.environ['POD_IP'], 8080), Handler).serve_forever()
"""


def exporter(name: str, samples: str, **labels: str) -> cases.Json:
    """A pod that is scraped and says whatever it likes."""
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": labels,
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
        },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "liar", "image": "splitplane/runtime:0.1.0", "command": ["python", "-c", EXPORTER],
                "env": [
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "SAMPLES", "value": samples},
                ],
            }],
        },
    }  # fmt: skip


def ask(prometheus_url: str, query: str) -> dict[tuple[str, ...], str]:
    """An instant query's answer: values by the labels' values."""
    with urllib.request.urlopen(f"{prometheus_url}/api/v1/query?{urlencode({'query': query})}", timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return {tuple(series["metric"].values()): series["value"][1] for series in found}


def test_samples_that_are_not_numbers_hold_the_plan_until_they_stop(profiled: cases.Namespace, digest: str) -> None:
    profiled.apply(cases.pipeline("fooled", cases.model(digest), cases.tier("edge")))
    profiled.wait_condition("fooled", "Ready", "True")
    profiled.wait_condition("fooled", "MetricsAvailable", "True")
    generation = profiled.status("fooled")["plan"]["generation"]

    samples = f'splitplane_requests_total{{namespace="{profiled.name}",pipeline="fooled"}} NaN\n'
    profiled.apply(exporter("liar", samples, **{"splitplane.dev/pipeline": "fooled"}))
    wrong = profiled.wait_condition("fooled", "MetricsAvailable", "False", "NotANumber")
    assert "The plan is held" in wrong["message"]
    assert len(events(profiled, "fooled", "NotANumber")) == 1
    assert profiled.condition("fooled", "Ready")["status"] == "True"
    assert profiled.status("fooled")["plan"]["generation"] == generation

    profiled("delete", "pod", "liar")
    profiled.wait_condition("fooled", "MetricsAvailable", "True", seconds=120)


def test_no_pod_speaks_for_a_pipeline_that_it_is_no_part_of_nor_of_a_nodes_price(
    profiled: cases.Namespace, digest: str, kubectl: Callable[..., str], prometheus_url: str
) -> None:
    profiled.apply(cases.pipeline("honest", cases.model(digest), cases.tier("edge")))
    profiled.wait_condition("honest", "MetricsAvailable", "True")
    prices = ask(prometheus_url, "max by (node) (node_total_hourly_cost)")
    samples = (
        f'splitplane_requests_total{{namespace="{profiled.name}",pipeline="honest"}} NaN\n'
        + "".join(f'node_total_hourly_cost{{node="{node}"}} 99\n' for (node,) in prices)
    )  # fmt: skip
    elsewhere = cases.Namespace(kubectl, f"{profiled.name}-elsewhere")
    kubectl("create", "namespace", elsewhere.name)
    try:
        profiled.apply(exporter("stranger", samples))
        elsewhere.apply(exporter("namesake", samples, **{"splitplane.dev/pipeline": "honest"}))
        scraped = 'count_over_time(up{pod=~"stranger|namesake"}[1m]) >= 3'
        cases.wait(lambda: len(ask(prometheus_url, scraped)) == 2, seconds=90, what="three scrapes of each")
        wrong = (
            f'splitplane_requests_total{{namespace="{profiled.name}",pipeline="honest"}} != splitplane_requests_total'
        )
        assert ask(prometheus_url, wrong) == {}
        told = ask(prometheus_url, 'sum by (exported_namespace, namespace) (splitplane_requests_total{pod="namesake"})')
        assert told == {(profiled.name, elsewhere.name): "NaN"}
        assert ask(prometheus_url, "max by (node) (node_total_hourly_cost)") == prices
        assert profiled.condition("honest", "MetricsAvailable")["status"] == "True"
        assert events(profiled, "honest", "NotANumber") == []
    finally:
        kubectl("delete", "namespace", elsewhere.name, "--wait=false")


def test_without_prometheus_plans_are_held_and_requests_served(
    profiled: cases.Namespace, digest: str, cluster: Cluster, prometheus_url: str
) -> None:
    profiled.apply(cases.pipeline("blind", cases.model(digest), cases.tier("edge")))
    profiled.wait_condition("blind", "Ready", "True")
    helm, chart = binaries.ensure("helm"), install.find_chart()
    install.install(cluster, helm=helm, chart=chart, settings=["prometheus.url=http://127.0.0.1:9"])
    try:
        blind = profiled.wait_condition("blind", "MetricsAvailable", "False", "PrometheusUnreachable")
        assert "http://127.0.0.1:9" in blind["message"]
        assert "prometheus.url" in blind["message"]
        assert len(events(profiled, "blind", "PrometheusUnreachable")) == 1
        assert profiled.condition("blind", "Ready")["status"] == "True"
    finally:
        install.install(cluster, helm=helm, chart=chart, settings=[f"prometheus.url={prometheus_url}"])
    profiled.wait_condition("blind", "MetricsAvailable", "True")


def test_a_second_operator_at_work_issues_no_generation_twice(
    profiled: cases.Namespace, measured: cases.Measured, digest: str, another_operator: Callable[..., Any]
) -> None:
    end = len(measured.profile["spec"]["segments"])

    def fixed(cut: int) -> cases.Json:
        stages = [("edge", 0, cut), ("cloud", cut, end)]
        plan = {"stages": [{"tier": t, "firstCut": a, "lastCut": b} for t, a, b in stages], "codecs": ["fp32"]}
        return cases.pipeline("contested", cases.model(digest), partitioning={"mode": "Fixed", "fixed": plan})

    another_operator(port=18080)
    seen: dict[int, set[str]] = {}

    def note() -> cases.Json:
        found = profiled.items("rtable")
        for table in found:
            spec = table["spec"]
            seen.setdefault(spec["generation"], set()).add(json.dumps(spec.get("routes", []), sort_keys=True))
        return found[0] if found else {}

    for cut in (1, 2, 1):
        profiled.apply(fixed(cut))
        summary = f"edge:0-{cut}|cloud:{cut}-{end} fp32"

        def serves(summary: str = summary) -> bool:
            table = note()
            acknowledged = table.get("status", {}).get("acknowledgedGeneration", -1)
            routes = table.get("spec", {}).get("routes", [])
            return bool(routes) and routes[0]["name"] == summary and acknowledged >= table["spec"]["generation"]

        cases.wait(serves, seconds=90, what=f"{summary} acknowledged; {profiled.status('contested')}", every=0.1)
    time.sleep(3)
    generation = note()["spec"]["generation"]

    assert all(len(routes) == 1 for generation, routes in seen.items() if generation > 0)
    assert sorted(seen) == list(range(min(seen), generation + 1))
    profiled.wait_condition("contested", "Ready", "True")
    assert [d["action"] for d in profiled.status("contested")["decisions"]].count("Switch") <= 3
