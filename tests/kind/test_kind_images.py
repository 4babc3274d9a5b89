"""Each image as the most restricted user: any number, a read-only root, no capability; only /tmp can be written."""

import subprocess

import pytest

from kindcluster.cluster import Cluster
from tests.support.kind_images import images_in_use

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
    image = getattr(images_in_use(kind), name)
    # The base may have a pip of its own (python:3.12-slim does), but our environment has none.
    script = (
        "for tool in gcc cc ld /opt/venv/bin/pip*; do command -v $tool; done;"
        "head -c 60 /usr/share/doc/splitplane/sbom.cdx.json"
    )
    done = restricted(kind, image, "sh", "-c", script)
    assert done.stdout.startswith("{"), done.stdout
    assert "CycloneDX" in done.stdout
    assert "No module named pip" in restricted(kind, image, "python", "-m", "pip", "--version").stderr


BYTES = """
import os
seen = set()
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev", "/tmp")]
    for name in files:
        facts = os.lstat(os.path.join(folder, name))
        seen.add((facts.st_ino, facts.st_size))
print(sum(size for _, size in seen))
"""


def test_the_operators_image_has_less_than_350_mb(kind: Cluster) -> None:
    """Uncompressed, counted inside: what Docker says depends on how it stores images."""
    done = restricted(kind, images_in_use(kind).operator, "python", "-c", BYTES)
    assert 100e6 < int(done.stdout) < 350e6


LISTED = """
import importlib.metadata, json, subprocess
bill = json.load(open("/usr/share/doc/splitplane/sbom.cdx.json"))["components"]
names = lambda kind: {(c["name"], c["version"]) for c in bill if c["purl"].startswith(f"pkg:{kind}/")}
listed = {kind: names(kind) for kind in ("deb", "pypi")}
there = subprocess.check_output(["dpkg-query", "--show", "--showformat=${Package} ${Version}\\n"], text=True)
assert listed["deb"] == {tuple(line.split()) for line in there.splitlines()}
imported = {(d.metadata["Name"].lower().replace("_", "-"), d.version) for d in importlib.metadata.distributions()}
assert imported <= listed["pypi"], imported - listed["pypi"]
find = ["find", "/", "-xdev", "-type", "d", "(", "-name", "*.dist-info", "-o", "-name", "*.egg-info", ")"]
folders = subprocess.run(find, stdout=-1, stderr=-3, text=True).stdout.splitlines()
assert len({folder.rpartition("/")[2] for folder in folders}) >= len(listed["pypi"]), folders
print(*sorted(name for name, _ in listed["pypi"]))
"""
"""Prints the Python packages of the bill, after comparing it with what dpkg and Python themselves say."""


@pytest.mark.parametrize(
    ("name", "there", "gone"),
    # Not pip: a base image may have its own, which is in the bill then.
    [("operator", {"splitplane", "kopf", "grpcio"}, {"torch"}), ("runtime", {"splitplane", "torch"}, {"kopf"})],
)
def test_the_bill_of_materials_is_that_of_the_image_and_names_splitplane_itself(
    kind: Cluster, name: str, there: set[str], gone: set[str]
) -> None:
    done = restricted(kind, getattr(images_in_use(kind), name), "python", "-c", LISTED)
    assert done.returncode == 0, done.stderr
    assert there <= set(done.stdout.split())
    assert not gone & set(done.stdout.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_program_imports_is_compiled_already(kind: Cluster, program: str) -> None:
    name, _ = PROGRAMS[program]
    command = ("python", "-v", "-c", f"import splitplane.{program}")
    said = restricted(kind, getattr(images_in_use(kind), name), *command).stderr
    compiled_now = [line for line in said.splitlines() if line.startswith("# code object from /")]
    assert compiled_now == []
    assert "splitplane" in said
