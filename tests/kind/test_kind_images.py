"""Each image as the most restricted user: any number, a read-only root, no capability; only /tmp can be written."""

import subprocess

import pytest

from kindcluster.cluster import Cluster
from tests.kind.conftest import images_in_use

PROGRAMS = {
    "controller": ("operator", "SPLITPLANE_PROMETHEUS_URL is not set"),
    "runtime.gateway": ("operator", "set SPLITPLANE_NAMESPACE"),
    "runtime.link_target": ("operator", "set SPLITPLANE_POD_IP"),
    "runtime.stage": ("runtime", "set SPLITPLANE_NAMESPACE"),
    "runtime.profile_job": ("runtime", "set SPLITPLANE_NAMESPACE"),
    "runtime.calibration_job": ("runtime", "set SPLITPLANE_NAMESPACE"),
}
"""By module: its image, and the last words of one that is started without the variables that a pod would have."""


def restricted(kind: Cluster, image: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [kind.engine.docker, "run", "--rm", "--read-only", "--tmpfs=/tmp", "--user=41234:41234", "--cap-drop=ALL",
         "--security-opt=no-new-privileges", "--network=none", image, *command],
        env=kind.engine.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_starts_as_any_user_and_says_what_it_lacks(kind: Cluster, program: str) -> None:
    name, words = PROGRAMS[program]
    done = restricted(kind, getattr(images_in_use(kind), name), "python", "-m", f"splitplane.{program}")

    assert done.returncode in {1, 2, 78}, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_runtime_image_computes_and_has_no_kopf_and_the_operators_no_torch(kind: Cluster) -> None:
    images = images_in_use(kind)
    done = restricted(kind, images.runtime, "python", "-c", "import torch; print(float(torch.ones(3) @ torch.ones(3)))")
    assert (done.stdout, done.returncode) == ("3.0\n", 0), done.stderr
    for image, module in ((images.runtime, "kopf"), (images.operator, "torch")):
        assert f"No module named '{module}'" in restricted(kind, image, "python", "-c", f"import {module}").stderr


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_an_image_has_no_compiler_no_pip_and_a_bill_of_materials(kind: Cluster, name: str) -> None:
    script = (
        "for tool in gcc cc ld pip pip3; do command -v $tool; done; head -c 60 /usr/share/doc/splitplane/sbom.cdx.json"
    )
    done = restricted(kind, getattr(images_in_use(kind), name), "sh", "-c", script)
    assert done.stdout.startswith("{"), done.stdout
    assert "CycloneDX" in done.stdout
