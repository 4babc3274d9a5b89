"""The chart as one file for `kubectl apply`, judged by the API server itself and by kubeconform with its schemas."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from splitplane.local import binaries, install
from tests.support import kubeconform

pytestmark = pytest.mark.integration


SURROUNDINGS: dict[str, object] = {
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "a"}}}}]}},
    "imagePullSecrets": ["one", {"name": "two"}],
    "resources": {"limits": {"ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi", "vendor.example/x": 1}},
    "tracing": {"endpoint": "http://otel.example:4318", "ratio": 0.5},
}  # fmt: skip
COMBINATIONS: dict[str, list[str]] = {
    "defaults": [],
    "all on": [
        "--set=networkPolicy.enabled=true,mtls.mode=Authority,metrics.kserveNames=true,priorityClassName=system-cluster-critical",
        "--set=linkTarget.priorityClassName=system-node-critical,linkTarget.podAnnotations.team=edge",
        *(f"--set-json={name}={json.dumps(value)}" for name, value in SURROUNDINGS.items()),
    ],
    "annotations of the chart replaced": [
        r"--set-string=podAnnotations.prometheus\.io/scrape=false,podAnnotations.prometheus\.io/path=",
        r"--set-string=linkTarget.podAnnotations.prometheus\.io/scrape=false",
    ],
    "nulls": [
        "--set=resources=null,linkTarget.resources=null,image.operator.pullPolicy=null,affinity=null,runAsUser=null,podAnnotations=null",
        "--set=tolerations=null,nodeSelector=null,imagePullSecrets=null,priorityClassName=null,image.operator.tag=null",
    ],
    "little": ["--set=linkTarget.enabled=false,crds.install=false,mtls.mode=Secrets"],
}  # fmt: skip
"""Of values, each of which renders parts of the templates that the others leave out."""


@pytest.fixture(scope="module", params=list(COMBINATIONS.values()), ids=list(COMBINATIONS))
def rendered(request: pytest.FixtureRequest) -> str:
    return subprocess.run(
        [str(binaries.ensure("helm")), "template", "release", str(install.find_chart()), "--namespace=default",
         "--set=prometheus.url=http://prometheus.example:9090", *request.param],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip


def test_the_api_server_takes_every_object_of_the_rendered_chart_and_warns_of_nothing(
    kubectl: Callable[..., str], rendered: str
) -> None:
    said = kubectl(
        "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "--filename=-", stdin=rendered
    )
    assert len(said.splitlines()) == rendered.count("\nkind: ")


def test_kubeconform_finds_every_object_valid_and_a_wrong_field_in_any(
    kubectl: Callable[..., str], rendered: str, tmp_path: Path
) -> None:
    openapi = json.loads(kubectl("get", "--raw=/openapi/v2"))
    done = kubeconform.check(rendered, openapi, tmp_path)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["summary"] == {
        "valid": rendered.count("\nkind: "), "invalid": 0, "errors": 0, "skipped": 0,
    }  # fmt: skip
    misspelt = rendered.replace("serviceAccountName:", "serviceAccountname:")
    refused = kubeconform.check(misspelt, openapi, tmp_path)
    assert refused.returncode == 1
    assert "serviceAccountname" in refused.stdout
