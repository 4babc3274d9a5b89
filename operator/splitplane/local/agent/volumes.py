"""Volumes as folders of the pod's own: what each kind holds, and how it is kept up to date.

Files made from API objects are written as kubelet writes them: a new folder with all of them, then one rename of the
``..data`` link, so that a reader never sees half an update.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from splitplane.local.agent import environment
from splitplane.local.agent.environment import NodeFacts
from splitplane.local.agent.errors import StartError
from splitplane.local.agent.paths import inside

Pod = Mapping[str, Any]
Object = dict[str, Any]

API_KINDS = ("configMap", "secret", "downwardAPI", "projected")
_TOKEN_SECONDS = 3600
RENEWED_AT_SHARE = 0.8
RENEWED_AFTER_SECONDS = 86400.0


class Reader(Protocol):
    """What volumes need of the API server."""

    async def config_map(self, namespace: str, name: str) -> Object | None:
        """A ConfigMap, None if it does not exist."""

    async def secret(self, namespace: str, name: str) -> Object | None:
        """A Secret, None if it does not exist."""

    async def claimed(self, namespace: str, claim: str) -> Object:
        """The PersistentVolume bound to a claim. Raises StartError if there is none."""

    async def token(self, pod: Pod, *, audience: str | None, seconds: int) -> tuple[str, float]:
        """A token of the pod's service account, and when it ends (seconds since the epoch)."""


@dataclass(frozen=True)
class File:
    """A file of a volume."""

    data: bytes
    mode: int


@dataclass(frozen=True)
class Content:
    """All files of a volume by relative path, and when they should be made anew (for tokens), or None."""

    files: Mapping[str, File]
    renew_at: float | None = None


def kind_of(volume: Mapping[str, Any]) -> str:
    """The kind of a volume: the one key beside its name."""
    return next((key for key in volume if key != "name"), "emptyDir")


def references(pod: Pod) -> set[tuple[str, str]]:
    """The (resource, name) of every ConfigMap and Secret that the pod's volumes are made from."""
    found = set()
    for volume in pod["spec"].get("volumes", []):
        for part in volume.get("projected", {}).get("sources", []) or [volume]:
            if "configMap" in part:
                found.add(("configmaps", str(part["configMap"]["name"])))
            if "secret" in part:
                found.add(("secrets", str(part["secret"].get("secretName") or part["secret"]["name"])))
    return found


async def folder_of(volume: Mapping[str, Any], pod: Pod, pod_dir: Path, reader: Reader) -> Path:
    """The folder or file that a volume is mounted from; made if it is the pod's own.

    Raises :class:`StartError` for what does not exist or is not offered here.
    """
    kind = kind_of(volume)
    own = pod_dir / "volumes" / str(volume["name"])
    if kind == "emptyDir" or kind in API_KINDS:
        own.mkdir(parents=True, exist_ok=True)
        return own
    if kind == "hostPath":
        return _host_path(volume["hostPath"])
    if kind == "persistentVolumeClaim":
        claim = volume["persistentVolumeClaim"]["claimName"]
        bound = await reader.claimed(pod["metadata"]["namespace"], claim)
        source = bound["spec"].get("hostPath") or bound["spec"].get("local")
        if source is None:
            raise StartError(
                "ContainerCreating", f'the volume of claim "{claim}" is not file-backed: hostPath or local'
            )
        return _host_path({"type": "DirectoryOrCreate", **source})
    raise StartError(
        "ContainerCreating",
        f'volume "{volume["name"]}": {kind} is not offered by the embedded cluster (offered: emptyDir, hostPath, '
        f"persistentVolumeClaim, {', '.join(API_KINDS)})",
    )


def _host_path(source: Mapping[str, Any]) -> Path:
    path, kind = Path(source["path"]), source.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(exist_ok=True)
    if (kind == "Directory" and not path.is_dir()) or (kind == "File" and not path.is_file()) or not path.exists():
        raise StartError("ContainerCreating", f"hostPath {path} does not exist on this machine as {kind or 'anything'}")
    return path


async def content_of(
    volume: Mapping[str, Any], pod: Pod, reader: Reader, *, pod_ip: str, node: NodeFacts
) -> Content | None:
    """The files of a volume made from API objects; None for other kinds."""
    kind = kind_of(volume)
    if kind not in API_KINDS:
        return None
    source = volume[kind] or {}
    mode = source.get("defaultMode", 0o644)
    parts = source.get("sources", []) if kind == "projected" else [{kind: source}]
    files: dict[str, File] = {}
    renewals: list[float] = []
    for part in parts:
        piece = await _part(part, pod, reader, mode=mode, pod_ip=pod_ip, node=node)
        files |= piece.files
        if piece.renew_at is not None:
            renewals.append(piece.renew_at)
    for path in files:
        inside(Path(), path)
    return Content(files, min(renewals, default=None))


async def _part(
    part: Mapping[str, Any], pod: Pod, reader: Reader, *, mode: int, pod_ip: str, node: NodeFacts
) -> Content:
    namespace = pod["metadata"]["namespace"]
    if "configMap" in part:
        source = part["configMap"]
        item = await reader.config_map(namespace, source["name"])
        return Content(_keys("ConfigMap", source["name"], source, item, mode))
    if "secret" in part:
        source = part["secret"]
        name = source.get("secretName") or source["name"]
        return Content(_keys("Secret", name, source, await reader.secret(namespace, name), mode))
    if "downwardAPI" in part:
        files = {}
        for item in part["downwardAPI"].get("items", []):
            if "fieldRef" in item:
                text = environment.field_value(pod, item["fieldRef"]["fieldPath"], pod_ip=pod_ip, node=node)
            else:
                reference = item["resourceFieldRef"]
                text = environment.resource_value(
                    pod, reference, container=reference.get("containerName", ""), node=node
                )
            files[item["path"]] = File(text.encode(), item.get("mode", mode))
        return Content(files)
    if "serviceAccountToken" in part:
        source = part["serviceAccountToken"]
        seconds = int(source.get("expirationSeconds", _TOKEN_SECONDS))
        token, ends = await reader.token(pod, audience=source.get("audience") or None, seconds=seconds)
        return Content({source["path"]: File(token.encode(), 0o600)}, renewal_of(ends, now=time.time()))
    raise StartError("ContainerCreating", f"projected source {', '.join(part)} is not offered by the embedded cluster")


def renewal_of(ends: float, *, now: float) -> float:
    """When to replace a token made now that ends then, by kubelet's rule: at four fifths of its life, or a day."""
    return now + min(RENEWED_AT_SHARE * (ends - now), RENEWED_AFTER_SECONDS)


def _keys(
    kind: str, name: str, source: Mapping[str, Any], item: Mapping[str, Any] | None, mode: int
) -> dict[str, File]:
    optional = bool(source.get("optional"))
    if item is None:
        if optional:
            return {}
        raise StartError("ContainerCreating", f'{kind.lower()} "{name}" not found')
    values = environment.data_of(kind, item)
    if not source.get("items"):
        return {key: File(value, mode) for key, value in values.items()}
    files = {}
    for entry in source["items"]:
        if entry["key"] in values:
            files[entry["path"]] = File(values[entry["key"]], entry.get("mode", mode))
        elif not optional:
            raise StartError("ContainerCreating", f'{kind.lower()} "{name}" has no key "{entry["key"]}"')
    return files


def write(folder: Path, content: Content) -> bool:
    """Make `folder` show exactly these files. Returns whether anything changed."""
    data_link = folder / "..data"
    if data_link.is_dir() and _same(data_link, content.files):
        return False
    fresh = folder / f"..{time.time_ns()}"
    for relative, file in content.files.items():
        path = fresh / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)
    fresh.mkdir(exist_ok=True)
    earlier = data_link.resolve() if data_link.is_symlink() else None
    new_link = folder / "..data.new"
    new_link.unlink(missing_ok=True)
    new_link.symlink_to(fresh.name)
    new_link.replace(data_link)
    tops = {PurePosixPath(relative).parts[0] for relative in content.files}
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(Path("..data") / top)
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if earlier is not None:
        shutil.rmtree(earlier, ignore_errors=True)
    return True


def _same(link: Path, files: Mapping[str, File]) -> bool:
    folder = link.resolve()
    have = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return have == set(files) and all((folder / path).read_bytes() == file.data for path, file in files.items())
