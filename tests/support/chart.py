"""The chart as helm renders it, for tests of its templates."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitplane.local import binaries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "splitplane"
PROMETHEUS = ("--set", "prometheus.url=http://prometheus.example:9090")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = binaries.find("helm")
    if program is None:
        pytest.fail("helm is not built yet: run `make binaries`")
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    return helm("template", "release", str(CHART), "--namespace", "splitplane-system", *arguments)


def render(*arguments: str) -> list[dict[str, Any]]:
    """The documents that the chart makes of its defaults and ``arguments``."""
    done = template(*PROMETHEUS, *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(documents: list[dict[str, Any]], kind: str, ending: str = "") -> dict[str, Any]:
    """The one document of its kind, or of those the one whose name ends so."""
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].endswith(ending)]
    return found


def pod(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Spec and only container of a workload's pods."""
    spec = document["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container
