"""Which programs the embedded cluster takes, and what its processes do when one of them ends."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from splitplane.local import binaries, logs
from splitplane.local.errors import LocalError
from splitplane.local.files import locked, write_atomically
from splitplane.local.processes import Process, descendants, end, marked, start_daemon
from splitplane.local.supervision import Supervised


def program(folder: Path, name: str, output: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No program anywhere: not on PATH, not in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def test_the_asset_folder_wins_over_path_and_cache(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(empty_machine / "assets"))
    tool = binaries.TOOLS["kube-apiserver"]
    program(binaries.cached(tool).parent, tool.name, "Kubernetes v1.37.2")
    on_path = program(empty_machine / "path", tool.name, "Kubernetes v1.37.0")
    assert binaries.find(tool.name) == on_path
    asset = program(empty_machine / "assets", tool.name, "Kubernetes v1.37.1")
    assert binaries.find(tool.name) == asset


@pytest.mark.parametrize(
    ("name", "output", "fits"),
    [
        ("kube-apiserver", "Kubernetes v1.37.9", True),
        ("kube-apiserver", "Kubernetes v1.36.2", False),
        ("kube-apiserver", "Kubernetes v2.37.2", False),
        ("kubectl", "Client Version: v1.37.0", True),
        ("etcd", "etcd Version: 3.6.1", True),
        ("etcd", "etcd Version: 3.4.9", False),
        ("prometheus", "prometheus, version 3.2.1 (branch: HEAD)", True),
        ("prometheus", "prometheus, version 2.54.0 (branch: HEAD)", False),
        ("helm", "v3.16.2+g13654a5", True),
        ("helm", "v2.17.0", False),
        ("helm", "no version at all", False),
    ],
)
def test_a_program_on_path_is_taken_only_if_its_version_fits(
    empty_machine: Path, name: str, output: str, fits: bool
) -> None:
    path = program(empty_machine / "path", name, output)
    assert binaries.find(name) == (path if fits else None)


def test_every_tool_is_pinned_by_a_committed_module() -> None:
    assert {name: binaries.pinned_version(tool) for name, tool in binaries.TOOLS.items()} == {
        "etcd": "3.7.3", "kube-apiserver": "1.37.2", "kube-controller-manager": "1.37.2", "kube-scheduler": "1.37.2",
        "kubectl": "1.37.2", "prometheus": "3.16.0", "helm": "4.3.1",
    }  # fmt: skip


def test_a_build_that_fails_says_so_and_leaves_nothing_behind(empty_machine: Path) -> None:
    go = program(empty_machine / "path", "go", "go version go9.9.9 linux/amd64")
    go.write_text(go.read_text() + 'case "$1" in build) exec /bin/false;; esac\n')
    with pytest.raises(LocalError, match=r"Building etcd 3\.7\.3 failed"):
        binaries.ensure("etcd")
    assert [path.name for path in binaries.cached(binaries.TOOLS["etcd"]).parent.iterdir()] == [".lock"]


def test_a_builder_that_waited_takes_what_the_other_built(empty_machine: Path) -> None:
    tool = binaries.TOOLS["etcd"]
    target = binaries.cached(tool)
    command = [sys.executable, "-c", "from splitplane.local import binaries; print(binaries.ensure('etcd'))"]
    with locked(target.parent / ".lock"):
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        program(target.parent, tool.name, "etcd Version: 3.7.3")
    assert waiting.communicate(timeout=120)[0].strip() == str(target)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.02)


def supervised(tmp_path: Path, script: str, marker: str = "x") -> Supervised:
    return Supervised(
        "part", (sys.executable, "-c", script), log=tmp_path / "part.log", environment={"TEST_MARKER": marker},
        on_change=lambda: None,
    )  # fmt: skip


async def test_a_killed_process_is_started_again_and_its_end_is_told(tmp_path: Path) -> None:
    part = supervised(tmp_path, "import time; time.sleep(60)")
    part.start()
    await until(lambda: part.process is not None)
    first = part.process
    assert first
    first.signal(signal.SIGKILL)
    await until(lambda: part.process not in (None, first))
    assert (part.restarts, part.last_exit) == (1, "signal SIGKILL")
    last = part.process
    await part.stop(grace_seconds=5)
    assert last
    assert not last.alive


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    part = supervised(tmp_path, script)
    part.start()
    await until(lambda: "deaf" in (tmp_path / "part.log").read_text() if (tmp_path / "part.log").exists() else False)
    process = part.process
    await part.stop(grace_seconds=0.2)
    assert process
    assert not process.alive


async def test_a_program_that_cannot_be_started_is_retried_and_logged(tmp_path: Path) -> None:
    part = Supervised("part", ("/no/such/program",), log=tmp_path / "part.log", environment={}, on_change=lambda: None)
    part.start()
    await until(lambda: part.restarts >= 2)
    await part.stop(grace_seconds=1)
    assert "cannot be started" in (tmp_path / "part.log").read_text()


async def test_marked_processes_and_their_children_are_found_and_ended(tmp_path: Path) -> None:
    marker = f"{tmp_path}-{os.getpid()}"
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    part = supervised(tmp_path, script, marker)
    part.start()
    await until(lambda: len(marked(marker, variable="TEST_MARKER")) == 2)
    found = marked(marker, variable="TEST_MARKER")
    assert part.process
    assert descendants(part.process.pid) == [process for process in found if process != part.process]
    await part.kill()
    await asyncio.to_thread(end, found)
    assert not [process for process in found if process.alive]


def test_a_reused_process_id_is_another_process() -> None:
    me = Process.of(os.getpid())
    assert me
    assert me.alive
    stranger = Process(me.pid, me.started + 1)
    assert not stranger.alive
    stranger.signal(signal.SIGKILL)  # reaches nobody


def test_a_reader_of_logs_learns_which_there_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "etcd.log", "one\ntwo\nthree\n")
    assert "".join(logs.read(tmp_path, "etcd", lines=2)) == "two\nthree\n"
    with pytest.raises(LocalError, match="there is etcd"):
        next(logs.read(tmp_path, "kubelet"))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_daemon_does_not_keep_what_its_starter_was_given(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.set_inheritable(held, True)  # as a shell hands it to `flock lock command`
    program = "import os, time; print(os.getsid(0) == os.getpid(), flush=True); time.sleep(60)"
    try:
        pid = start_daemon([sys.executable, "-c", program], environment=os.environ, log=tmp_path / "log")
    finally:
        os.close(held)
    daemon = Process.of(pid)
    assert daemon
    try:
        deadline = time.monotonic() + 60
        while (tmp_path / "log").read_text() != "True\n":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with lock.open("r+") as mine:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert daemon.alive
    finally:
        daemon.signal(signal.SIGKILL)
        os.waitpid(pid, 0)
