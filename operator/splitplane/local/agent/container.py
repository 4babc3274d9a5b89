"""From a container's specification to the process that stands for it: argv, environment, folders.

The container's mounts are links below ``root/`` in its folder, which is also its working directory: a path without its
leading slash works too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from splitplane.local.agent import environment, images
from splitplane.local.agent.config import AgentConfig
from splitplane.local.agent.environment import NodeFacts, Sources
from splitplane.local.agent.errors import StartError
from splitplane.local.agent.paths import Mount, Rewriter, inside, normal

TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
_TERMINATION_PATH = "/dev/termination-log"


@dataclass(frozen=True)
class Launch:
    """How to start a container's process, and where it may leave its last words."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    termination_file: Path
    rewrite: Callable[[str], str]
    """Turns the container's paths into those of this machine."""


def prepare(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    *,
    config: AgentConfig,
    node: NodeFacts,
    sources: Sources,
    volumes: Mapping[str, Path],
    pod_dir: Path,
    pod_ip: str,
) -> Launch:
    """Lay out a container's folder and work out its process.

    Raises :class:`StartError` where the specification cannot be carried out.
    """
    name = container["name"]
    bin_dir = images.resolve(container["image"], config.images)
    own = pod_dir / "containers" / name
    home, temporary, root = own / "home", own / "tmp", own / "root"
    for folder in (home, temporary, root):
        folder.mkdir(parents=True, exist_ok=True)
    base = environment.base_variables(
        bin_dir=bin_dir,
        home=home,
        temporary=temporary,
        hostname=pod["spec"].get("hostname") or pod["metadata"]["name"],
        speed_factor=config.speed_factor,
        memory_bytes=environment.memory_limit(container),
        proxy=config.proxy,
        no_proxy=config.no_proxy,
    )
    variables = environment.build(pod, container, base=base, sources=sources, pod_ip=pod_ip, node=node)
    mounts = [_mount(mount, volumes, variables) for mount in container.get("volumeMounts", [])]
    for mount in mounts:
        _link(root, mount)
    termination = own / "termination-log"
    termination.write_text("")
    words = normal(container.get("terminationMessagePath") or _TERMINATION_PATH)
    rewrite = Rewriter([*mounts, Mount(words, termination)])
    # Without "command" it is "args": an image of the project has an init for its entry point, which the agent is here.
    argv = [
        rewrite(environment.expand(word, variables))
        for word in [*container.get("command", []), *container.get("args", [])]
    ]
    if not argv:
        raise StartError(
            "RunContainerError",
            f'give container "{name}" a "command" or "args": what its image starts by itself is not known here',
        )
    final = {key: value if value == base.get(key) else rewrite(value) for key, value in variables.items()}
    if final["PATH"] != base["PATH"]:
        final["PATH"] = f"{bin_dir}:{final['PATH']}"
    token_mount = next((m for m in mounts if m.mount_path == TOKEN_MOUNT), None)
    if token_mount is not None and "KUBECONFIG" not in final:
        final["KUBECONFIG"] = str(write_kubeconfig(own, token_mount.target, config, pod))
    cwd = root
    if container.get("workingDir"):
        cwd = _working_dir(rewrite(container["workingDir"]), root)
    return Launch(tuple(argv), final, cwd, termination, rewrite)


def _working_dir(path: str, root: Path) -> Path:
    folder = Path(path)
    if not folder.is_relative_to(root.parent.parent.parent) and not folder.is_dir():
        folder = root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise StartError("RunContainerError", f"workingDir {path!r} is not a folder")
    return folder


def _mount(mount: Mapping[str, Any], volumes: Mapping[str, Path], variables: Mapping[str, str]) -> Mount:
    target = volumes[mount["name"]]
    part = mount.get("subPath") or environment.expand(mount.get("subPathExpr", ""), variables)
    if part:
        target = inside(target, part)
        if not target.exists():
            target.mkdir(parents=True)
    return Mount(normal(mount["mountPath"]), target)


def _link(root: Path, mount: Mount) -> None:
    """Show a mount below the container's root. Inside another mount only the rewritten path reaches it."""
    link = root / mount.mount_path.lstrip("/")
    for parent in link.relative_to(root).parents:
        if (root / parent).is_symlink():
            return
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(mount.target)


def write_kubeconfig(own: Path, token_dir: Path, config: AgentConfig, pod: Mapping[str, Any]) -> Path:
    """A kubeconfig with the pod's own token: what in-cluster configuration is elsewhere."""
    path = own / "kubeconfig"
    cluster = {"server": config.api_server, "certificate-authority": str(token_dir / "ca.crt")}
    context = {"cluster": "local", "user": "pod", "namespace": pod["metadata"]["namespace"]}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": cluster}],
        # A file, not the token: clients read it again, so that they follow its renewal.
        "users": [{"name": "pod", "user": {"tokenFile": str(token_dir / "token")}}],
        "contexts": [{"name": "pod", "context": context}],
        "current-context": "pod",
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    path.chmod(0o600)
    return path
