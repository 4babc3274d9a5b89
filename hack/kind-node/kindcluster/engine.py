"""Docker: the one at hand, else a private daemon of this user's cache, which leaves no trace when it is stopped.

The private daemon needs root. Its images stay in the cache, so a second start finds all of them.
"""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kindcluster import machine
from splitplane.local.errors import LocalError
from splitplane.local.files import read_json, write_json
from splitplane.local.paths import cache_home, state_home
from splitplane.local.processes import Process, end, marked, start_daemon

_HERE = Path(__file__).parents[1]
_START_SECONDS = 60.0
_MARK = "SPLITPLANE_KIND_DOCKER"
"""Environment variable of the private daemon and of its own helpers; its value is the daemon's folder."""
RUN = Path("/run/splitplane-kind")
"""Sockets, and namespaces of containers, of the private daemon."""
_SETTINGS = {"builder": {"gc": {"enabled": True, "defaultKeepStorage": "6GB"}}}
"""Of a private daemon: steps of builds that are kept, as many as one of each image takes."""


LABEL = "dev.splitplane.kind=made-here"
"""On every image that these commands build, and only these commands remove."""

_LOCAL = re.compile(r"unix://|tcp://(localhost|127\.[0-9.]+|\[::1\])(:|$)")
_PROXY = re.compile(r"(http|https|ftp|no|all)_proxy", re.IGNORECASE)
_NO_ANSWER = re.compile(
    r"dial tcp|no such host|server misbehaving|connection re(fused|set)|no route to host|network is unreachable"
    r"|i/o timeout|TLS handshake|Client\.Timeout|deadline exceeded|proxyconnect|x509:|\bEOF\b",
    re.IGNORECASE,
)
"""How Docker says that it could not speak with a registry."""

_MISSING = (
    "No Docker daemon answers. Start Docker; or run this as root with its daemon installed (Debian and Ubuntu: "
    "apt-get install docker.io), and a private one is started."
)
_NO_CLIENT = "Docker's daemon is installed here, and its client is not: apt-get install docker-cli docker-buildx."
_REFUSED = (
    "A Docker daemon runs, but this user may not talk to it. Add the user to its group (sudo usermod -aG docker $USER, "
    "then log in again), or run this command with sudo."
)


class UnreachableError(LocalError):
    """No image registry answers."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker daemon that answers."""

    docker: str
    """The command to talk to it with."""
    host: str | None
    """``DOCKER_HOST`` of a private daemon; None where the environment as it is reaches Docker."""

    @property
    def environment(self) -> dict[str, str]:
        """For commands that call ``docker`` themselves, as kind does."""
        own = (
            {"DOCKER_HOST": self.host, "PATH": f"{Path(self.docker).parent}:{os.environ['PATH']}"} if self.host else {}
        )
        # The daemon's own builder puts images where kind finds them; what it attests would make each build a new image.
        build = {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain", "BUILDX_BUILDER": "default"}
        return {**os.environ, **own, **build, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 1800.0) -> str:
        """Standard output of a docker command. Raises ``LocalError`` with docker's own words."""
        return run(self.docker, *arguments, environment=self.environment, stdin=stdin, timeout=timeout)

    def check(self) -> None:
        """Raises ``LocalError`` for a daemon whose nodes this machine could not reach by address, nor shape."""
        address = self.run("context", "inspect", "--format={{.Endpoints.docker.Host}}").strip()
        if not _LOCAL.match(address):
            raise LocalError(f"Docker is at {address}; a daemon of this machine is needed (docs/kind.md).")
        info = json.loads(self.run("info", "--format={{json .}}"))
        rootless = any("rootless" in option for option in info.get("SecurityOptions") or ())
        if rootless or info.get("OperatingSystem") == "Docker Desktop":
            kind = "a rootless daemon" if rootless else "Docker Desktop"
            raise LocalError(f"This is {kind}; a local Docker Engine that runs as root is needed (docs/kind.md).")

    def has_image(self, name: str) -> bool:
        command = [self.docker, "image", "inspect", name]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def build(self, *options: str, arguments: dict[str, str]) -> None:
        """Build an image of ours. Proxies of this environment are handed on; Docker knows them without an ``ARG``."""
        proxies = {name: value for name, value in os.environ.items() if _PROXY.fullmatch(name)}
        if proxies:  # what is served here for a build is reached directly
            for name in ("no_proxy", "NO_PROXY"):
                proxies[name] = ",".join(filter(None, (proxies.get(name), "localhost", "127.0.0.1")))
        given = (f"--build-arg={name}={value}" for name, value in (proxies | arguments).items())
        self.run("build", "--network=host", f"--label={LABEL}", *given, *options)

    def remove_others(self, pattern: str, kept: str) -> None:
        """Remove our images whose name matches ``pattern``, but for ``kept`` and what a container runs.

        Ours are those with ``LABEL``: an image that the user has tagged so himself stays.
        """
        filters = (f"--filter=reference={pattern}", f"--filter=label={LABEL}")
        found = set(self.run("images", *filters, "--format={{.Repository}}:{{.Tag}}").split())
        for name in found - {kept}:
            with suppress(LocalError):
                self.run("rmi", name)

    def pull(self, name: str) -> None:
        """Have ``name`` here: it is already, or a registry gives it.

        Raises:
            UnreachableError: no registry answers.
            LocalError: one does, and does not give it; in its own words.
        """
        if self.has_image(name):
            return
        try:
            self.run("pull", "--quiet", name)
        except LocalError as error:
            if _NO_ANSWER.search(str(error)):
                raise UnreachableError(str(error)) from None
            raise


def run(
    *command: str, environment: dict[str, str] | None = None, stdin: str | None = None, timeout: float = 600.0
) -> str:
    """Standard output of a command. Raises ``LocalError`` with the last of its own words."""
    try:
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"{' '.join(command[:4])}: no end within {timeout:.0f} s.") from error
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-25:])
        raise LocalError(f"{' '.join(command[:4])}: {words}")
    return done.stdout


def state() -> Path:
    """The folder of what a running cluster needs: kubeconfig, logs, the private daemon's pid.

    Beside that of the embedded clusters, one of which may be called ``kind``.
    """
    return state_home().with_name("splitplane-kind")


def find() -> Engine | None:
    """The Docker that runs: the private one, if it does, else the user's own."""
    private = _private()
    if private and _answers(private):
        return private
    docker = shutil.which("docker")
    own = Engine(docker, None) if docker else None
    return own if own and _answers(own) else None


def ensure() -> Engine:
    """The Docker that runs, else a private one, started now.

    Raises:
        LocalError: none runs and none can be started; the message says what to do.
    """
    return find() or _start()


def stop() -> bool:
    """End the private daemon with all its containers and put the machine back; False where none was started.

    Its folder goes too, with its log and the kubeconfig; its images stay in the cache.

    Raises:
        LocalError: something could not be put back; the rest has been, and the message lists what has not.
    """
    before = read_json(_before())
    if before is None:
        return False
    problems = []
    if engine := _private():
        try:
            # One that was killed has left its containers running: only a daemon ends them.
            if not _answers(engine):
                _launch(engine)
            _empty(engine)
        except LocalError as error:
            problems.append(f"containers may go on running: {error}")
        _end()
    if problems := problems + machine.restore(before):
        raise LocalError(
            "Not all is as it was before the private Docker daemon. What is listed here is tried again by the next "
            "kind-down:\n" + "\n".join(problems)
        )
    shutil.rmtree(state())
    _forget_namespaces()
    return True


def _start() -> Engine:
    engine = _private()
    if engine is None or os.geteuid() != 0:
        no_client = shutil.which("dockerd") and not shutil.which("docker")
        raise LocalError(_NO_CLIENT if no_client else _REFUSED if _is_refused() else _MISSING)
    state().mkdir(parents=True, exist_ok=True)
    if read_json(_before()) is None:  # else a daemon was killed: what the machine was before it is known already
        write_json(_before(), machine.describe())
    try:
        _launch(engine)
    except LocalError:
        problems = machine.restore(read_json(_before()))
        if not problems:
            _before().unlink()
        raise
    _empty(engine)  # a daemon that was killed has left its containers, and half a cluster is of no use
    return engine


def _launch(engine: Engine) -> None:
    """Have the private daemon answer: wait for one that has just been started, else start it.

    Raises:
        LocalError: it does not; it has been ended, and the message has the last of its log.
    """
    folder = state()
    log = folder / "dockerd.log"
    daemon = _process() or _spawn(engine, log)
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(engine):
        if daemon is None or not daemon.alive or time.monotonic() > deadline:
            words = log.read_text(errors="replace").strip().splitlines()[-5:]
            _end()
            raise LocalError("The private Docker daemon did not start:\n" + "\n".join(words))
        time.sleep(0.2)


def _spawn(engine: Engine, log: Path) -> Process | None:
    folder = state()
    (folder / "dockerd.pid").unlink(missing_ok=True)  # a killed daemon's: its number may be another process' now
    write_json(folder / "daemon.json", _SETTINGS)
    log.unlink(missing_ok=True)
    command = [
        str(shutil.which("dockerd")), f"--config-file={folder / 'daemon.json'}", f"--host={engine.host}",
        f"--data-root={cache_home() / 'kind' / 'docker'}",
        # Short: the sockets below it may have 104 characters.
        f"--exec-root={RUN}", f"--pidfile={folder / 'dockerd.pid'}",
        # kind's nodes must not see the machine's cgroups, nor Docker's data have other rights than its own.
        "--default-cgroupns-mode=private", *_runtime(),
    ]  # fmt: skip
    return Process.of(start_daemon(command, environment={**os.environ, _MARK: str(folder)}, log=log))


def _end() -> None:
    if process := _process():
        end([process], grace_seconds=30.0)
    end(marked(str(state()), variable=_MARK))  # containerd, where the daemon was killed


def _forget_namespaces() -> None:
    """Take away the folder of a daemon that has ended, with the mounts there of network namespaces that it held."""
    for namespace in (RUN / "netns").glob("*"):
        subprocess.run(["umount", namespace], capture_output=True, check=False)
    shutil.rmtree(RUN, ignore_errors=True)


def _empty(engine: Engine) -> None:
    if containers := engine.run("ps", "--all", "--quiet").split():
        engine.run("rm", "--force", "--volumes", *containers)
    engine.run("network", "prune", "--force")


def _runtime() -> list[str]:
    """Where even root lacks CAP_SYS_RESOURCE (in a sandbox), runc must not be asked for it."""
    if machine.may_raise_limits():
        return []
    return [f"--add-runtime=bounded={_HERE / 'runc-bounded'}", "--default-runtime=bounded"]


def _private() -> Engine | None:
    """The private daemon, running or not; None where Docker's daemon is not installed."""
    daemon = shutil.which("dockerd")
    if daemon is None:
        return None
    # The client of the daemon's own package: a newer one elsewhere on PATH may lack BuildKit, which is a plug-in there.
    beside = [folder / "docker" for folder in (Path(daemon).parent, Path("/usr/bin")) if (folder / "docker").exists()]
    docker = str(beside[0]) if beside else shutil.which("docker")
    return Engine(docker, f"unix://{state() / 'docker.sock'}") if docker else None


def _answers(engine: Engine) -> bool:
    with suppress(LocalError):
        engine.run("version", timeout=20.0)
        return True
    return False


def _is_refused() -> bool:
    """Whether Docker's own socket is there, but not for this user."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    done = subprocess.run([docker, "version"], capture_output=True, text=True, timeout=20.0, check=False)
    return "permission denied" in done.stderr


def _process() -> Process | None:
    """The private daemon, if it lives."""
    for process in marked(str(state()), variable=_MARK):
        with suppress(OSError):
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"dockerd"):
                return process
    return None


def _before() -> Path:
    """What the machine was before the private daemon; present as long as it has to be put back."""
    return state() / "machine.json"
