"""What goes wrong ends in a condition and an event that say what to do, and is over when its cause is.

Most of it goes wrong side by side in one namespace, and is mended together: nearly all of the time is waiting.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support import operator_cases as cases

pytestmark = pytest.mark.integration

SYMPTOMS = {
    "unknown-factory": ("Stalled", "True", "ProfileFailed"),
    "wrong-sha256": ("Stalled", "True", "ProfileFailed"),
    "homeless": ("Stalled", "True", "NoNodesForTier"),
    "limited": ("PlanFeasible", "False", "Infeasible"),
    "fooled": ("MetricsAvailable", "False", "NotANumber"),
}
"""The condition that each broken pipeline comes to."""

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


@dataclass(frozen=True)
class Broken:
    """A namespace in which each pipeline lacks one thing, but for ``honest``; ``label`` is one that no node has."""

    ns: cases.Namespace
    label: str
    generation: int
    """Of the plan of ``fooled`` when its metrics were still right."""

    def symptom(self, name: str) -> cases.Json:
        """Wait for the condition that a pipeline must come to."""
        return self.ns.wait_condition(name, *SYMPTOMS[name])

    def events(self, name: str, reason: str) -> list[str]:
        return [event["message"] for event in self.ns.events(name) if event["reason"] == reason]


@pytest.fixture(scope="module")
def broken(kubectl: Callable[..., str], measured: cases.Measured, digest: str) -> Iterator[Broken]:
    with cases.Namespace.fresh(kubectl, measured.copy) as ns:
        label = f"example.com/{ns.name}"
        model, edge = cases.model(digest), cases.tier("edge")
        for name in ("fooled", "honest"):
            ns.apply(cases.pipeline(name, model, edge))
        ns.apply(cases.pipeline("unknown-factory", cases.model(digest, factory="narrowing:missing"), edge))
        ns.apply(cases.pipeline("wrong-sha256", cases.model("0" * 64), edge))
        ns.apply(cases.pipeline("homeless", model, cases.tier("edge", nodeSelector={label: "yes"})))
        ns.apply(cases.pipeline("limited", model, edge, objectives={"maxCostPerHour": "0.0001"}))
        ns.wait_condition("fooled", "Ready", "True")
        ns.wait_condition("fooled", "MetricsAvailable", "True")
        generation = ns.status("fooled")["plan"]["generation"]
        samples = f'splitplane_requests_admitted_total{{namespace="{ns.name}",pipeline="fooled"}} NaN\n'
        ns.apply(exporter("liar", samples, **{"splitplane.dev/pipeline": "fooled"}))
        yield Broken(ns, label, generation)


@pytest.mark.parametrize(("name", "said"), [("unknown-factory", "missing"), ("wrong-sha256", "sha256")])
def test_a_model_that_cannot_be_loaded_says_so_in_its_own_words(broken: Broken, name: str, said: str) -> None:
    stalled = broken.symptom(name)
    assert said in stalled["message"].lower()
    assert "Mend spec.model" in stalled["message"]
    assert broken.ns.condition(name, "Ready")["reason"] == "ProfileFailed"
    assert len(broken.events(name, "ProfileFailed")) >= 1


def test_a_tier_without_nodes_is_named(broken: Broken) -> None:
    assert f"{broken.label}=yes" in broken.symptom("homeless")["message"]
    assert broken.events("homeless", "NoNodesForTier")


def test_limits_that_no_plan_keeps_are_reported_and_served_as_well_as_possible(broken: Broken) -> None:
    assert "spec.objectives" in broken.symptom("limited")["message"]
    broken.ns.wait_condition("limited", "Ready", "True")
    assert len(broken.events("limited", "Infeasible")) == 1


def test_samples_that_are_not_numbers_hold_the_plan(broken: Broken) -> None:
    assert "The plan is held" in broken.symptom("fooled")["message"]
    assert len(broken.events("fooled", "NotANumber")) == 1
    assert broken.ns.condition("fooled", "Ready")["status"] == "True"
    assert broken.ns.status("fooled")["plan"]["generation"] == broken.generation


@pytest.fixture(scope="module")
def mended(broken: Broken, kubectl: Callable[..., str], digest: str) -> Iterator[cases.Namespace]:
    """The same namespace, with the cause of each trouble taken away once the trouble was seen."""
    for name in SYMPTOMS:
        broken.symptom(name)
    broken.ns("delete", "pod", "liar")
    for name in ("unknown-factory", "wrong-sha256", "limited"):
        broken.ns.apply(cases.pipeline(name, cases.model(digest), cases.tier("edge")))
    kubectl("label", "node", "edge-1", f"{broken.label}=yes")
    yield broken.ns
    kubectl("label", "node", "edge-1", f"{broken.label}-")


@pytest.mark.parametrize("name", ["unknown-factory", "wrong-sha256", "homeless"])
def test_a_pipeline_that_could_not_start_does_once_its_cause_is_gone(mended: cases.Namespace, name: str) -> None:
    mended.wait_condition(name, "Ready", "True")
    assert mended.condition(name, "Stalled")["status"] == "False"


def test_limits_that_can_be_kept_again_are(mended: cases.Namespace) -> None:
    mended.wait_condition("limited", "PlanFeasible", "True")


def test_no_pod_speaks_for_a_pipeline_that_it_is_no_part_of_nor_of_a_nodes_price(
    broken: Broken, kubectl: Callable[..., str], prometheus_url: str
) -> None:
    ns = broken.ns
    ns.wait_condition("honest", "MetricsAvailable", "True")
    prices = ask(prometheus_url, "max by (node) (node_total_hourly_cost)")
    samples = (
        f'splitplane_requests_admitted_total{{namespace="{ns.name}",pipeline="honest"}} NaN\n'
        + "".join(f'node_total_hourly_cost{{node="{node}"}} 99\n' for (node,) in prices)
    )  # fmt: skip
    elsewhere = cases.Namespace(kubectl, f"{ns.name}-elsewhere")
    kubectl("create", "namespace", elsewhere.name)
    try:
        ns.apply(exporter("stranger", samples))
        elsewhere.apply(exporter("namesake", samples, **{"splitplane.dev/pipeline": "honest"}))
        scraped = 'count_over_time(up{pod=~"stranger|namesake"}[1m]) >= 3'
        cases.wait(lambda: len(ask(prometheus_url, scraped)) == 2, seconds=90, what="three scrapes of each")
        own = f'splitplane_requests_admitted_total{{namespace="{ns.name}",pipeline="honest"}}'
        assert len(ask(prometheus_url, own)) == 1
        assert ask(prometheus_url, f"{own} != {own}") == {}  # NaN
        namesake = 'splitplane_requests_admitted_total{pod="namesake"}'
        told = ask(prometheus_url, f"sum by (exported_namespace, namespace) ({namesake})")
        assert told == {(ns.name, elsewhere.name): "NaN"}
        assert ask(prometheus_url, "max by (node) (node_total_hourly_cost)") == prices
        assert ns.condition("honest", "MetricsAvailable")["status"] == "True"
        assert broken.events("honest", "NotANumber") == []
    finally:
        kubectl("delete", "namespace", elsewhere.name, "--wait=false")


def test_samples_that_are_numbers_again_end_the_hold(mended: cases.Namespace) -> None:
    mended.wait_condition("fooled", "MetricsAvailable", "True")


def test_without_prometheus_plans_are_held_and_requests_served(broken: Broken, operator: Callable[..., None]) -> None:
    ns = broken.ns
    ns.wait_condition("honest", "Ready", "True")
    operator("prometheus.url=http://127.0.0.1:9")
    try:
        blind = ns.wait_condition("honest", "MetricsAvailable", "False", "PrometheusUnreachable")
        assert "http://127.0.0.1:9" in blind["message"]
        assert "prometheus.url" in blind["message"]
        assert len(broken.events("honest", "PrometheusUnreachable")) == 1
        assert ns.condition("honest", "Ready")["status"] == "True"
    finally:
        operator()
    ns.wait_condition("honest", "MetricsAvailable", "True")


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
            reports = table.get("status", {}).get("gateways", {}).values()
            acknowledged = min((report["acknowledgedGeneration"] for report in reports), default=-1)
            routes = table.get("spec", {}).get("routes", [])
            return bool(routes) and routes[0]["name"] == summary and acknowledged >= table["spec"]["generation"]

        cases.wait(serves, seconds=90, what=f"{summary} acknowledged; {profiled.status('contested')}", every=0.1)
    time.sleep(3)
    generation = note()["spec"]["generation"]

    assert all(len(routes) == 1 for generation, routes in seen.items() if generation > 0)
    assert sorted(seen) == list(range(min(seen), generation + 1))
    profiled.wait_condition("contested", "Ready", "True")
    assert [d["action"] for d in profiled.status("contested")["decisions"]].count("Switch") <= 3
