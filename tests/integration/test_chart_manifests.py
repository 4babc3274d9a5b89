"""The chart as one file for `kubectl apply`, judged by the API server itself and by kubeconform with its schemas."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from splitplane.local import binaries, install
from tests.support import kubeconform

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rendered() -> str:
    return subprocess.run(
        [str(binaries.ensure("helm")), "template", "release", str(install.find_chart()), "--namespace=default",
         "--set=prometheus.url=http://prometheus.example:9090,networkPolicy.enabled=true,mtls.mode=Authority"],
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
