"""The commands for kind (hack/kind-node), as far as they need no cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from kindcluster import audit, cluster, lifecycle, node_image, product_images
from kindcluster import engine as engines
from kindcluster.engine import Engine, UnreachableError
from splitplane.local.errors import LocalError

OUT = Console(file=StringIO())
KINDCLUSTER = Path(lifecycle.__file__).parents[1]


def _engine(folder: Path, script: str) -> Engine:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Engine(str(program), None)


@pytest.fixture
def docker(tmp_path: Path) -> Callable[[str], Engine]:
    """``docker(words)``: an engine that has no image, and whose daemon refuses to pull any with these words."""
    return lambda words: _engine(tmp_path, f"cat >&2 <<'WORDS'\n{words}\nWORDS\nexit 1")


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[str], Engine]:
    """``answering(text)``: an engine that answers any command with ``text``, and writes down how it was called."""
    return lambda text: _engine(tmp_path, f"echo \"$@\" > {tmp_path}/arguments\ncat <<'WORDS'\n{text}\nWORDS")


ASKED = 'Error response from daemon: Get "https://registry-1.example/v2/":'
UNREACHABLE = (
    f"{ASKED} dial tcp: lookup registry-1.example on 10.0.0.53:53: no such host",
    f"{ASKED} net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
    f"{ASKED} net/http: TLS handshake timeout",
    f"{ASKED} proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused",
    f"{ASKED} x509: certificate signed by unknown authority",
)
REFUSED = (
    "Error response from daemon: manifest for kindest/node:v0.0.1 not found: manifest unknown: manifest unknown",
    "Error response from daemon: pull access denied for kindest/nod, repository does not exist: denied: requested",
    "Error response from daemon: toomanyrequests: You have reached your unauthenticated pull rate limit.",
    "write /var/lib/docker/tmp/GetImageBlob1: no space left on device",
)


@pytest.mark.parametrize("words", UNREACHABLE)
def test_a_registry_that_does_not_answer_is_told_from_one_that_refuses(
    words: str, docker: Callable[[str], Engine]
) -> None:
    with pytest.raises(UnreachableError, match=r"registry-1\.example"):
        docker(words).pull("kindest/node:v0.0.1")


@pytest.mark.parametrize("words", REFUSED)
def test_a_registry_that_refuses_is_quoted(words: str, docker: Callable[[str], Engine]) -> None:
    with pytest.raises(LocalError) as caught:
        docker(words).pull("kindest/node:v0.0.1")

    assert not isinstance(caught.value, UnreachableError)
    assert words in str(caught.value)


@pytest.mark.parametrize("words", [UNREACHABLE[0], REFUSED[0]])
def test_a_node_image_that_was_asked_for_by_name_is_never_replaced_by_another(
    words: str, docker: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_IMAGE", "kindest/node:v0.0.1")

    with pytest.raises(LocalError, match=r"v0\.0\.1|no such host"):
        node_image.ensure(docker(words), on_build=lambda _: None, say=lambda _: None)


def test_a_user_who_may_not_use_docker_is_told_so(
    tmp_path: Path, docker: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker("permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(LocalError, match="usermod -aG docker"):
        engines.ensure()


def test_who_has_the_daemon_without_its_client_is_told_to_install_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path))
    daemon = tmp_path / "dockerd"
    daemon.write_text("#!/bin/sh\n")
    daemon.chmod(0o755)
    monkeypatch.setattr(engines, "_private", lambda: None)  # it looks in /usr/bin too

    with pytest.raises(LocalError, match="apt-get install docker-cli"):
        engines.ensure()


def test_a_second_command_at_the_cluster_is_refused_and_told_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    with lifecycle.alone(), pytest.raises(LocalError, match=rf"process {os.getpid()}\)"):
        lifecycle.down(OUT, say=lambda _: None)


INTERRUPTED = """
import sys, time
from pathlib import Path
from rich.console import Console
from kindcluster import lifecycle

def up(out, say):
    print("up", flush=True)
    for _ in range(600):  # in pieces: a signal in the instant before a sleep does not end it
        time.sleep(0.1)

lifecycle._whole = lambda out: None
lifecycle._up = up
lifecycle._down = lambda out, say: print("down", flush=True)
lifecycle.stop_orderly()
try:
    if sys.argv[1] == "up":
        lifecycle.up(Console(), say=print)
    with lifecycle.running(Console(), say=print, keep=sys.argv[1] == "keep"):
        pass
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs that are started hear signals, also where this one was started in the background, or by nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:  # a program inherits that a signal is ignored, not how it is handled
            signal.signal(number, lambda *_: None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("command", "number", "words"),
    [
        ("up", signal.SIGTERM, "down"),
        ("running", signal.SIGINT, "down"),
        ("running", signal.SIGTERM, "down"),
        ("running", signal.SIGHUP, "down"),
        ("keep", signal.SIGTERM, "kind-down"),
    ],
)
def test_a_signal_takes_down_what_a_command_has_begun(
    command: str, number: signal.Signals, words: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(KINDCLUSTER)}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, command], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        said = process.communicate(timeout=120)[0].splitlines()

    assert words in said[0]
    assert said[-1] == "interrupted"


def test_pods_are_new_when_their_configuration_is() -> None:
    manifests = (KINDCLUSTER / "prometheus.yaml").read_text()

    def template(text: str) -> object:
        made = list(cluster.configured(yaml.safe_load_all(manifests), "prometheus.yml", text))
        kinds = [body["kind"] for body in made]
        config = made[kinds.index("ConfigMap")]
        assert config["data"] == {"prometheus.yml": text}
        assert kinds.index("Namespace") < kinds.index("ConfigMap") < kinds.index("Deployment")
        return made[kinds.index("Deployment")]["spec"]["template"]

    assert template("a") == template("a") != template("b")


def test_a_log_whose_last_line_is_being_written_is_read_up_to_it() -> None:
    assert audit.events('{"verb": "get"}\n{"verb": "list"}\n{"ver') == [{"verb": "get"}, {"verb": "list"}]


def test_torchs_index_keeps_its_address_while_that_is_free_and_ends_with_its_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    with product_images._served(folder) as first:
        pass
    with product_images._served(folder) as again, product_images._served(folder) as other:
        assert again == first
        assert other != first
    with pytest.raises(ZeroDivisionError), product_images._served(folder):
        1 / 0  # noqa: B018 - a build that fails


CI_STEP = """
import time
from kindcluster import lifecycle

lifecycle.stop_orderly()
try:
    print("up", flush=True)
    for _ in range(600):  # in pieces: a signal in the instant before a sleep does not end it
        time.sleep(0.1)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("down", flush=True)
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_ci_alone_reaches_what_it_runs(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    script.write_bytes((KINDCLUSTER.parents[1] / ".ci" / "run").read_bytes())
    packages = tmp_path / "hack" / "kind-node" / "install-packages"
    packages.parent.mkdir(parents=True)
    packages.write_text("#!/bin/sh\n")
    packages.chmod(0o755)
    (tmp_path / "step.py").write_text(CI_STEP)
    (tmp_path / "Makefile").write_text(f"SHELL := /bin/bash\nlint:\n\t@UV=uv {sys.executable} -m step $(ARGS)\n")
    # A make that runs this test is nothing that CI's own makes know of.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment["PYTHONPATH"] = str(KINDCLUSTER)
    with subprocess.Popen(
        ["bash", str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("== hack/kind-node/install-packages: ")
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)

    assert "down" in said
    assert process.returncode == 143


LOCAL = "unix:///var/run/docker.sock"
DEBIAN = {"OperatingSystem": "Debian", "SecurityOptions": ["name=cgroupns"]}


@pytest.mark.parametrize(
    ("address", "info", "words"),
    [
        (LOCAL, {**DEBIAN, "SecurityOptions": ["name=seccomp", "name=rootless"]}, "a rootless daemon"),
        (LOCAL, {"OperatingSystem": "Docker Desktop", "SecurityOptions": None}, "Docker Desktop"),
        ("ssh://builder.example", DEBIAN, "Docker is at ssh://builder.example"),
        ("tcp://10.0.0.7:2376", DEBIAN, "Docker is at tcp://10.0.0.7:2376"),
        ("tcp://localhost.example:2376", DEBIAN, "Docker is at tcp://localhost.example:2376"),
        (LOCAL, DEBIAN, ""),
        ("tcp://127.0.0.1:2375", DEBIAN, ""),
    ],
)
def test_a_docker_whose_nodes_cannot_be_reached_is_refused_before_anything_is_built(
    address: str, info: dict[str, object], words: str, tmp_path: Path
) -> None:
    engine = _engine(tmp_path, f"[ \"$1\" = context ] && echo '{address}' || echo '{json.dumps(info)}'")
    if not words:
        engine.check()
        return
    with pytest.raises(LocalError, match=words):
        engine.check()


def test_a_build_behind_a_proxy_reaches_what_is_served_for_it_directly(
    answering: Callable[[str], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", ".example")
    answering("").build("--tag=x", ".", arguments={})
    given = (tmp_path / "arguments").read_text().split()
    assert "--build-arg=https_proxy=http://proxy.example:3128" in given
    assert "--build-arg=NO_PROXY=.example,localhost,127.0.0.1" in given
    assert "--build-arg=no_proxy=localhost,127.0.0.1" in given
