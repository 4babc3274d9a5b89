"""A container's environment: pure functions from the pod, its ConfigMaps and Secrets to variables.

Nothing of the agent's own environment gets in: pods see neither its credentials nor its user's settings.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitplane.domain.quantities import parse_quantity
from splitplane.local.agent.errors import StartError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


@dataclass(frozen=True)
class NodeFacts:
    """What the downward API tells of the node. CPU in cores, memory in bytes."""

    name: str
    address: str
    cpu: str
    memory: str


@dataclass(frozen=True)
class Sources:
    """The ConfigMaps and Secrets that a container refers to, by name; None where one does not exist."""

    config_maps: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)


def referenced(container: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Names of the ConfigMaps and of the Secrets that a container's environment refers to."""
    maps, secrets = set(), set()
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            maps.add(source["configMapRef"]["name"])
        if "secretRef" in source:
            secrets.add(source["secretRef"]["name"])
    for variable in container.get("env", []):
        value_from = variable.get("valueFrom", {})
        if "configMapKeyRef" in value_from:
            maps.add(value_from["configMapKeyRef"]["name"])
        if "secretKeyRef" in value_from:
            secrets.add(value_from["secretKeyRef"]["name"])
    return maps, secrets


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value; ``$$(NAME)`` is an escaped one, and unknown names stay as they are."""

    def value(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        return variables.get(match.group(1), match.group())

    return _REFERENCE.sub(value, text)


def data_of(kind: str, item: Mapping[str, Any]) -> dict[str, bytes]:
    """The keys and values of a ConfigMap (text and binary) or a Secret."""
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    values = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    return values | {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}


def field_value(pod: Mapping[str, Any], path: str, *, pod_ip: str, node: NodeFacts) -> str:
    """The value of a downward API field, as in a variable or a file. Raises :class:`StartError` if it is unknown."""
    metadata, spec = pod["metadata"], pod["spec"]
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.removeprefix("metadata.")])
        case "metadata.labels" | "metadata.annotations":
            entries = metadata.get(path.removeprefix("metadata.")) or {}
            return "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(entries.items()))
        case "spec.nodeName":
            return node.name
        case "spec.serviceAccountName":
            return str(spec.get("serviceAccountName", ""))
        case "status.podIP" | "status.podIPs":
            return pod_ip
        case "status.hostIP" | "status.hostIPs":
            return node.address
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript is None:
        raise StartError("CreateContainerConfigError", f"fieldRef {path!r} is not a field that the downward API offers")
    return str((metadata.get(subscript.group(1)) or {}).get(subscript.group(2), ""))


def resource_value(pod: Mapping[str, Any], reference: Mapping[str, Any], *, container: str, node: NodeFacts) -> str:
    """A resourceFieldRef in units of its divisor, rounded up; a missing limit is the node's allocatable."""
    spec = pod["spec"]
    wanted = reference.get("containerName") or container
    found = [c for c in [*spec["containers"], *spec.get("initContainers", [])] if c["name"] == wanted]
    if not found:
        raise StartError("CreateContainerConfigError", f"resourceFieldRef names no container {wanted!r} of the pod")
    kind, _, resource = str(reference["resource"]).partition(".")
    amounts = (found[0].get("resources") or {}).get(kind) or {}
    fallback = {"cpu": node.cpu, "memory": node.memory}.get(resource, "0") if kind == "limits" else "0"
    divisor = parse_quantity(reference.get("divisor") or "1") or 1
    return str(math.ceil(parse_quantity(amounts.get(resource, fallback)) / divisor))


def memory_limit(container: Mapping[str, Any]) -> int | None:
    """A container's memory limit in bytes."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return int(parse_quantity(limits["memory"])) if "memory" in limits else None


def build(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    *,
    base: Mapping[str, str],
    sources: Sources,
    pod_ip: str,
    node: NodeFacts,
) -> dict[str, str]:
    """All variables of a container: `base`, then envFrom, then env, later ones winning.

    Raises :class:`StartError` where a source that is not optional is missing.
    """
    variables = dict(base)
    for source in container.get("envFrom", []):
        variables |= _from_source(source, sources)
    for variable in container.get("env", []):
        name, value_from = variable["name"], variable.get("valueFrom")
        if value_from is None:
            variables[name] = expand(variable.get("value", ""), variables)
            continue
        value: str | None
        if "fieldRef" in value_from:
            value = field_value(pod, value_from["fieldRef"]["fieldPath"], pod_ip=pod_ip, node=node)
        elif "resourceFieldRef" in value_from:
            value = resource_value(pod, value_from["resourceFieldRef"], container=container["name"], node=node)
        elif "configMapKeyRef" in value_from:
            value = _from_key("ConfigMap", value_from["configMapKeyRef"], sources.config_maps)
        elif "secretKeyRef" in value_from:
            value = _from_key("Secret", value_from["secretKeyRef"], sources.secrets)
        else:
            kinds = ", ".join(value_from)
            raise StartError("CreateContainerConfigError", f"env {name}: valueFrom.{kinds} is not offered here")
        if value is not None:
            variables[name] = value
    return variables


def _from_source(source: Mapping[str, Any], sources: Sources) -> dict[str, str]:
    kind, reference, known = (
        ("ConfigMap", source["configMapRef"], sources.config_maps)
        if "configMapRef" in source
        else ("Secret", source["secretRef"], sources.secrets)
    )
    item = known.get(reference["name"])
    if item is None:
        if reference.get("optional"):
            return {}
        raise StartError("CreateContainerConfigError", f'{kind.lower()} "{reference["name"]}" not found')
    prefix = source.get("prefix", "")
    return {prefix + key: value.decode(errors="replace") for key, value in data_of(kind, item).items()}


def _from_key(kind: str, reference: Mapping[str, Any], known: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    name, key = reference["name"], reference["key"]
    item = known.get(name)
    values = {} if item is None else data_of(kind, item)
    if key in values:
        return values[key].decode(errors="replace")
    if reference.get("optional"):
        return None
    what = f'{kind.lower()} "{name}" not found' if item is None else f"couldn't find key {key} in {kind} {name}"
    raise StartError("CreateContainerConfigError", what)


def base_variables(
    *,
    bin_dir: Path,
    home: Path,
    temporary: Path,
    hostname: str,
    speed_factor: float,
    memory_bytes: int | None,
    proxy: str | None,
    no_proxy: tuple[str, ...],
) -> dict[str, str]:
    """What a container starts from: its image's programs first on PATH, folders of the pod's own, the tier's uplink."""
    variables = {
        "PATH": f"{bin_dir}:{SYSTEM_PATH}",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "HOSTNAME": hostname,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "SPLITPLANE_SPEED_FACTOR": f"{speed_factor:g}",
    }
    if memory_bytes is not None:
        variables["SPLITPLANE_MEMORY_BYTES"] = str(memory_bytes)
    if (bin_dir.parent / "pyvenv.cfg").is_file():
        variables["VIRTUAL_ENV"] = str(bin_dir.parent)
    if proxy:
        # Many clients read names and addresses there, but no networks.
        exempt = ",".join(["localhost", "127.0.0.1", *no_proxy])
        variables |= {"grpc_proxy": proxy, "http_proxy": proxy, "no_grpc_proxy": exempt, "no_proxy": exempt}
    return variables
