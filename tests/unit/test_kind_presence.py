"""Whose kind cluster it is that has our cluster's name: only one that these commands made is used, or deleted."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from kindcluster import engine as engines
from kindcluster import lifecycle
from kindcluster.cluster import CONTROL_PLANE, NAME, Cluster, Presence
from kindcluster.engine import Engine
from splitplane.local.errors import LocalError

DOCKER = """#!/bin/sh
case "$*" in
"inspect --format={{{{range .Mounts}}}}{{{{println .Source}}}}{{{{end}}}} {control_plane}") cat {folder}/mounts ;;
*) echo "not a command of this test: $*" >&2; exit 1 ;;
esac
"""
KIND = """#!/bin/sh
echo "$*" >> {folder}/kind-calls
case "$*" in
"get clusters") cat {folder}/clusters ;;
"get nodes") echo {control_plane} ;;
"delete cluster"*) : > {folder}/clusters ;;
*) echo "not a command of this test: $*" >&2; exit 1 ;;
esac
"""


class Machine:
    """A machine with Docker and kind, as far as these answer what clusters there are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, script in (("docker", DOCKER), ("kind", KIND)):
            program = folder / name
            program.write_text(script.format(folder=folder, control_plane=CONTROL_PLANE))
            program.chmod(0o755)
        self.cluster = Cluster(
            Engine(str(folder / "docker"), None), folder / "kind", folder / "kubectl", folder / "helm"
        )
        engines.state().mkdir()
        self.has("other-kind")

    def has(self, *clusters: str, mounts: str = "/lib/modules") -> None:
        (self.folder / "clusters").write_text("".join(f"{name}\n" for name in clusters))
        (self.folder / "mounts").write_text(f"{mounts}\n")

    def has_ours(self) -> None:
        self.has(NAME, "other-kind", mounts=f"/lib/modules\n{self.cluster.shared_folder}")

    def creating(self) -> None:
        """What the beginning of a creation has left, whose end never came."""
        (engines.state() / "unfinished").touch()

    @property
    def deleted(self) -> bool:
        calls = self.folder / "kind-calls"
        return calls.exists() and "delete cluster" in calls.read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = Machine(tmp_path)
    monkeypatch.setattr(engines, "find", lambda: found.cluster.engine)
    monkeypatch.setattr(engines, "ensure", lambda: found.cluster.engine)
    monkeypatch.setattr(Engine, "check", lambda self: None)
    monkeypatch.setattr(lifecycle, "_cluster", lambda engine, out: found.cluster)
    return found


def foreign(machine: Machine) -> None:
    """Somebody's own ``kind create cluster --name splitplane``."""
    machine.has(NAME, "other-kind")


def forestalled(machine: Machine) -> None:
    """Ours was to be made, and stopped: somebody's own had come first."""
    machine.creating()
    foreign(machine)


def whole(machine: Machine) -> None:
    machine.has_ours()


def interrupted(machine: Machine) -> None:
    machine.creating()
    machine.has_ours()


def gone(machine: Machine) -> None:
    """Ours, deleted by hand."""
    machine.has("other-kind", "splitplane-2")


@pytest.mark.parametrize(
    ("scene", "presence"),
    [
        (foreign, Presence.FOREIGN),
        (forestalled, Presence.FOREIGN),
        (whole, Presence.WHOLE),
        (interrupted, Presence.PARTIAL),
        (gone, Presence.NONE),
    ],
)
def test_a_cluster_is_ours_if_it_is_the_one_that_was_made_and_not_by_its_name(
    scene: Callable[[Machine], None], presence: Presence, machine: Machine
) -> None:
    scene(machine)
    assert machine.cluster.presence() is presence


@pytest.mark.parametrize(
    ("scene", "deleted"), [(foreign, False), (forestalled, False), (whole, True), (interrupted, True)]
)
def test_only_a_cluster_of_ours_is_taken_down(
    scene: Callable[[Machine], None], deleted: bool, machine: Machine
) -> None:
    scene(machine)
    said: list[str] = []
    lifecycle.down(Console(file=StringIO()), say=said.append)
    assert machine.deleted is deleted
    assert any("was not made by these commands, and stays" in words for words in said) is not deleted


@pytest.mark.parametrize("scene", [foreign, forestalled])
def test_anothers_cluster_is_not_used_either(scene: Callable[[Machine], None], machine: Machine) -> None:
    scene(machine)
    with (
        pytest.raises(LocalError, match=f"did not make.*kind delete cluster --name {NAME}"),
        lifecycle.running(Console(file=StringIO()), say=lambda _: None),
    ):
        pytest.fail("another's cluster is in use")
    assert not machine.deleted
