"""The programs of the control plane: found where they fit, else built once from pinned Go modules.

Order: ``$KUBEBUILDER_ASSETS``, then PATH (each only if its version fits), then the user's cache, then a build into
the cache.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitplane.local.errors import LocalError
from splitplane.local.files import locked
from splitplane.local.paths import cache_home
from splitplane.local.toolchain import find_go

_MODULES = Path(__file__).with_name("gomodules")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: what it is built from, and which versions of it serve."""

    name: str
    module: str
    """Folder in ``modules`` whose go.mod and go.sum pin the sources."""
    dependency: str
    """Module path whose version in go.mod is the program's."""
    package: str
    version_arguments: tuple[str, ...]
    fits: Callable[[tuple[int, ...], tuple[int, ...]], bool]
    """(found version, pinned version) -> whether the found program serves."""
    stamp: tuple[str, ...] = ()
    """Go variables that hold the version, as ``name=text`` with ``{version}``."""
    tags: str = ""
    minutes: float = 1.0
    """Duration of a cold build on two cores, for the progress line."""
    modules: Path = _MODULES


def _same_minor(found: tuple[int, ...], pinned: tuple[int, ...]) -> bool:
    return found[:2] == pinned[:2]


def _from(lowest: tuple[int, ...]) -> Callable[[tuple[int, ...], tuple[int, ...]], bool]:
    def fits(found: tuple[int, ...], pinned: tuple[int, ...]) -> bool:
        return lowest <= found and found[0] <= max(pinned[0], lowest[0])

    return fits


def kubernetes(name: str, minutes: float, *version_arguments: str) -> Tool:
    """One of the commands of Kubernetes' own repository."""
    return Tool(
        name, "kubernetes", "k8s.io/kubernetes", f"k8s.io/kubernetes/cmd/{name}", version_arguments or ("--version",),
        _same_minor,
        stamp=(
            "k8s.io/component-base/version.gitVersion=v{version}",
            "k8s.io/component-base/version.gitMajor={major}", "k8s.io/component-base/version.gitMinor={minor}",
            "k8s.io/component-base/version.gitTreeState=clean", "k8s.io/client-go/pkg/version.gitVersion=v{version}",
        ),
        minutes=minutes,
    )  # fmt: skip


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", ("--version",), _from((3, 6)),
            minutes=0.5,
        ),
        kubernetes("kube-apiserver", 4.6),
        kubernetes("kube-controller-manager", 1.3),
        kubernetes("kube-scheduler", 0.5),
        kubernetes("kubectl", 0.8, "version", "--client"),
        Tool(
            # Only Kubernetes discovery: the other clouds' clients would triple the build. No web assets.
            "prometheus", "prometheus", "github.com/prometheus/prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus", ("--version",), _from((3, 0)),
            stamp=("github.com/prometheus/common/version.Version={version}",),
            tags="remove_all_sd,enable_kubernetes_sd", minutes=2.4,
        ),
        Tool(
            "helm", "helm", "helm.sh/helm/v4", "helm.sh/helm/v4/cmd/helm", ("version", "--short"), _from((3, 14)),
            stamp=("helm.sh/helm/v4/internal/version.version=v{version}",), minutes=0.6,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Building:
    """A build that has begun (for a progress line)."""

    tool: str
    minutes: float


def pinned_version(tool: Tool) -> str:
    """The version in the committed go.mod, as the program itself calls it."""
    module = tool.modules / tool.module / "go.mod"
    match = re.search(rf"^(?:require|\t)\s*{re.escape(tool.dependency)} v([0-9.]+)$", module.read_text(), re.MULTILINE)
    if not match:
        raise LocalError(f"{module} does not require {tool.dependency}.")
    version = match[1]
    if tool.name == "prometheus":  # the Go module of Prometheus 3.16.0 is v0.316.0
        _, minor, patch = version.split(".")
        version = f"{int(minor) // 100}.{int(minor) % 100}.{patch}"
    return version


def cached(tool: Tool) -> Path:
    """Where a built program lives."""
    return cache_home() / "bin" / f"{tool.module}-{pinned_version(tool)}" / tool.name


def find(name: str) -> Path | None:
    """A program that fits and needs no build; None where there is none."""
    tool = TOOLS[name]
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [Path(assets) / name] if assets else []
    if on_path := shutil.which(name):
        candidates.append(Path(on_path))
    pinned = _numbers(pinned_version(tool))
    for candidate in candidates:
        version = program_version(candidate, tool)
        if version and tool.fits(_numbers(version), pinned):
            return candidate
    return cached(tool) if cached(tool).exists() else None


def ensure(name: str, *, on_build: Callable[[Building], None] = lambda _: None) -> Path:
    """A program that fits, built if need be. ``on_build`` is told when a build begins.

    Raises:
        LocalError: it can be neither found nor built; the message says why and what to do.
    """
    return find(name) or built(TOOLS[name], on_build=on_build)


def built(tool: Tool, *, on_build: Callable[[Building], None] = lambda _: None) -> Path:
    """The program of the pinned version, static, as built from source; built now if need be.

    Raises:
        LocalError: it can't be built; the message says why and what to do.
    """
    target = cached(tool)
    with locked(target.parent / ".lock"):
        if not target.exists():  # somebody else may have built it while we waited
            on_build(Building(tool.name, tool.minutes))
            _build(tool, target)
    return target


def program_version(program: Path, tool: Tool) -> str | None:
    """The version that a program tells of itself; None where it cannot be run."""
    try:
        result = subprocess.run(
            [str(program), *tool.version_arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v?([0-9]+\.[0-9]+\.[0-9]+)", result.stdout)
    return match[1] if match else None


def _build(tool: Tool, target: Path) -> None:
    module = tool.modules / tool.module
    version = pinned_version(tool)
    major, minor, _ = version.split(".")
    stamps = (text.format(version=version, major=major, minor=minor) for text in tool.stamp)
    unfinished = target.with_name(f".{tool.name}.{os.getpid()}")
    command = [
        str(find_go(module)), "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-tags", tool.tags,
        "-ldflags", " ".join(["-s", "-w", *(f"-X {stamp}" for stamp in stamps)]), "-o", str(unfinished), tool.package,
    ]  # fmt: skip
    environment = {
        **os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off", "GO111MODULE": "on",
    }  # fmt: skip
    process = subprocess.Popen(
        command, cwd=module, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate()
        if process.returncode != 0:
            tail = "\n".join(output.strip().splitlines()[-15:])
            raise LocalError(
                f"Building {tool.name} {version} failed:\n{tail}\n"
                f"Go downloads the module's sources on the first build: check the network (GOPROXY), or put a fitting "
                f"{tool.name} on PATH or into $KUBEBUILDER_ASSETS."
            )
        unfinished.replace(target)
    finally:
        if process.poll() is None:  # Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        unfinished.unlink(missing_ok=True)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
