"""hack/kind-node/install-packages: what it asks of apt-get, by what the machine has."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "hack" / "kind-node" / "install-packages"
ANSWERS = '[ "$1" != pull ]'
SERVED = '[ "$1" != pull ] || echo "$3" > "$0".pulled'
"""A daemon, and a registry that it pulls from."""
SILENT = "echo 'Cannot connect to the Docker daemon' >&2; exit 1"
REFUSES = "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1"
PRIVATE = ("dockerd", "iptables", "ip")
"""Programs that only a daemon of one's own needs."""
IMAGES = ("debootstrap", "gcc", "readelf")
"""Programs that only images without a registry need."""


class Machine:
    """A machine whose only commands are a shell's, Docker's client and what a test puts there."""

    def __init__(self, folder: Path, docker: str) -> None:
        self.folder, self.asked = folder, folder / "apt-arguments"
        for name in ("bash", "env", "sed"):
            (folder / name).symlink_to(str(shutil.which(name)))
        self.has("docker", docker)

    def has(self, name: str, script: str = "exit 0") -> None:
        program = self.folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def lacks(self, name: str) -> None:
        (self.folder / name).unlink()

    def knows(self, *packages: str) -> None:
        """Beside what every release has."""
        self.has("apt-cache", f'case " {" ".join(packages)} " in *" $2 "*) exit 0 ;; esac; exit 100')

    def user(self, number: int) -> None:
        self.has("id", f'[ "$1" = -u ] && echo {number} || echo somebody')

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        unset = dict.fromkeys(("BASE_IMAGE", "NODE_IMAGE"), "")
        environment = {**os.environ, **unset, **variables, "PATH": str(self.folder)}
        return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)

    @property
    def pulled(self) -> str:
        return (self.folder / "docker.pulled").read_text().strip()

    @property
    def installed(self) -> set[str]:
        """Packages that apt-get was asked for."""
        if not self.asked.exists():
            return set()
        return {word for word in self.asked.read_text().split() if not word.startswith("--")}


@pytest.fixture
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    machine = Machine(tmp_path, request.param)
    machine.has("apt-get", f'[ "$1" = install ] && shift && echo "$@" > {machine.asked}; exit 0')
    machine.knows()
    machine.user(0)
    return machine


@pytest.mark.parametrize("machine", [SILENT], indirect=True)
def test_without_a_daemon_everything_that_is_missing_is_installed(machine: Machine) -> None:
    machine.has("gcc")
    assert machine.run().returncode == 0
    assert machine.installed == {"docker.io", "debootstrap", "iptables", "iproute2", "binutils"}


@pytest.mark.parametrize("machine", [ANSWERS], indirect=True)
def test_beside_a_daemon_only_what_images_without_a_registry_need_is_installed(machine: Machine) -> None:
    assert machine.run().returncode == 0
    assert machine.installed == {"debootstrap", "gcc", "binutils"}


@pytest.mark.parametrize("machine", [SERVED], indirect=True)
def test_beside_a_daemon_with_a_registry_nothing_is_installed(machine: Machine) -> None:
    assert machine.run().returncode == 0
    assert not machine.installed
    assert machine.pulled.startswith("python:3"), "the base of the product's images, which is needed anyway"
    assert machine.run(BASE_IMAGE="registry.example.com/python:3.12").returncode == 0
    assert machine.pulled == "registry.example.com/python:3.12"
    assert not machine.installed


@pytest.mark.parametrize("machine", [SERVED], indirect=True)
def test_a_node_image_that_is_to_be_made_here_is_made_with_what_that_needs(machine: Machine) -> None:
    assert machine.run(NODE_IMAGE="build").returncode == 0
    assert machine.installed == {"debootstrap", "gcc", "binutils"}


@pytest.mark.parametrize("machine", [ANSWERS, SILENT], indirect=True)
def test_what_is_there_is_not_installed_again(machine: Machine) -> None:
    for name in (*PRIVATE, *IMAGES):
        machine.has(name)
    assert machine.run().returncode == 0
    assert not machine.installed


@pytest.mark.parametrize("machine", [SILENT], indirect=True)
def test_the_client_and_its_builder_are_installed_where_they_are_packages_of_their_own(machine: Machine) -> None:
    machine.lacks("docker")
    machine.knows("docker-cli", "docker-buildx")
    for name in (*PRIVATE, *IMAGES):
        machine.has(name)
    assert machine.run().returncode == 0
    assert machine.installed == {"docker-cli", "docker-buildx"}


@pytest.mark.parametrize("machine", ['[ "$1" != buildx ]'], indirect=True)
def test_a_builder_is_added_to_a_client_without_one_beside_a_daemon_too(machine: Machine) -> None:
    machine.knows("docker-buildx")
    for name in IMAGES:
        machine.has(name)
    assert machine.run().returncode == 0
    assert machine.installed == {"docker-buildx"}


@pytest.mark.parametrize("machine", [ANSWERS], indirect=True)
def test_a_user_with_docker_needs_no_root(machine: Machine) -> None:
    machine.user(1000)
    assert machine.run().returncode == 0
    assert not machine.installed


@pytest.mark.parametrize("machine", [SILENT], indirect=True)
def test_a_user_without_docker_is_told_what_is_missing(machine: Machine) -> None:
    machine.user(1000)
    done = machine.run()
    assert done.returncode == 1
    assert "docker.io" in done.stderr
    assert not machine.installed


@pytest.mark.parametrize("machine", [REFUSES], indirect=True)
def test_a_daemon_that_refuses_this_user_is_not_replaced(machine: Machine) -> None:
    machine.user(1000)
    done = machine.run()
    assert done.returncode == 1
    assert "usermod -aG docker" in done.stderr
    assert not machine.installed
