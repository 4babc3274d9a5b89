"""The programs of a kind node, built from pinned Go modules into the cache that the embedded cluster shares."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from splitplane.local.binaries import TOOLS, Building, Tool, built, kubernetes
from splitplane.local.errors import LocalError
from splitplane.local.toolchain import find_go

_MODULES = Path(__file__).parents[1] / "gomodules"


def _same(found: tuple[int, ...], pinned: tuple[int, ...]) -> bool:
    return found == pinned


KIND = Tool("kind", "kind", "sigs.k8s.io/kind", "sigs.k8s.io/kind", ("version",), _same, minutes=0.3, modules=_MODULES)


def _containerd(name: str, minutes: float) -> Tool:
    module = "github.com/containerd/containerd/v2"
    return Tool(
        name, "containerd", module, f"{module}/cmd/{name}", ("--version",), _same,
        stamp=(f"{module}/version.Version=v{{version}}",),
        # Snapshotters that need a file system or a library of their own; kind uses overlayfs.
        tags="no_btrfs,no_devmapper,no_zfs,no_aufs", minutes=minutes, modules=_MODULES,
    )  # fmt: skip


NODE = {
    tool.name: tool
    for tool in (
        *(TOOLS[name] for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")),
        TOOLS["prometheus"],
        kubernetes("kubeadm", 0.4),
        kubernetes("kubelet", 1.0),
        kubernetes("kube-proxy", 0.3),
        _containerd("containerd", 1.0),
        _containerd("containerd-shim-runc-v2", 0.2),
        _containerd("ctr", 0.2),
        Tool(
            "coredns", "coredns", "github.com/coredns/coredns", "github.com/coredns/coredns", ("-version",), _same,
            minutes=1.5, modules=_MODULES,
        ),
    )
}  # fmt: skip
"""What is in the node image, and in the images inside it."""


def ensure_node(on_build: Callable[[Building], None]) -> dict[str, Path]:
    """Every program of the node image, by name."""
    return {name: built(tool, on_build=on_build) for name, tool in NODE.items()}


def kind_sources() -> Path:
    """The folder of kind's sources, which hold the files of its base image."""
    module = _MODULES / KIND.module
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    command = [str(find_go(module)), "mod", "download", "-json", KIND.dependency]
    done = subprocess.run(command, cwd=module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalError(f"kind's sources could not be downloaded (check GOPROXY): {done.stderr.strip()}")
    return Path(json.loads(done.stdout)["Dir"])
