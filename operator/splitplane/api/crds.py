"""Write ``crds/*.yaml`` and the chart's copies from the pydantic models: ``python -m splitplane.api.crds [--check]``.

Kubernetes takes a subset of OpenAPI v3 ("structural" schemas): no ``$ref``, no ``null`` alternatives, types everywhere.
Limits on every string, list, map and integer are demanded here, because without them the API server cannot bound the
cost of the CEL rules and a user can fill etcd.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from splitplane.api import pipelines, profiles, routes
from splitplane.api.fields import GROUP, VERSION

Schema = dict[str, Any]
_READY = '.status.conditions[?(@.type=="Ready")]'
_DROPPED = {"title", "$defs", "propertyNames"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``kubectl get``; priority 1 shows with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    description: str = ""
    priority: int = 0

    def manifest(self) -> Schema:
        entry: Schema = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.description:
            entry["description"] = self.description
        if self.priority:
            entry["priority"] = self.priority
        return entry


@dataclass(frozen=True, slots=True)
class Resource:
    """What a CRD says besides its schema."""

    model: type[BaseModel]
    kind: str
    plural: str
    short: str
    columns: tuple[Column, ...]
    default_status: Schema | None = None

    @property
    def file(self) -> str:
        return f"{GROUP}_{self.plural}.yaml"


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

RESOURCES = (
    Resource(
        pipelines.InferencePipeline,
        pipelines.KIND,
        pipelines.PLURAL,
        "ipipe",
        (
            Column("Ready", _READY + ".status"),
            Column("Reason", _READY + ".reason"),
            Column("Plan", ".status.plan.summary", description="Tiers, cuts and codecs that serve now"),
            Column("Replicas", ".status.replicas", description="Ready over wanted replicas by stage"),
            Column("P95", ".status.plan.observedP95Milliseconds", "integer", "Observed p95 in milliseconds"),
            Column("SLO", ".status.slo", description="Observed latency against its limit"),
            Column("Cost/h", ".status.plan.costPerHour", description="Cost of the active plan per hour"),
            _AGE,
            Column("Mode", ".spec.partitioning.mode", priority=1),
            Column("Predicted", ".status.plan.predictedP95Milliseconds", "integer", "Predicted p95 in ms", priority=1),
            Column("Rate", ".status.plan.requestsPerSecond", description="Requests per second", priority=1),
            Column("Generation", ".status.plan.generation", "integer", priority=1),
            Column("Profile", ".status.profile", priority=1),
        ),
        default_status={"observedGeneration": -1},
    ),
    Resource(
        profiles.ModelProfile,
        profiles.KIND,
        profiles.PLURAL,
        "mprof",
        (
            Column("Factory", ".spec.model.factory"),
            Column("Fingerprint", ".spec.fingerprint"),
            _AGE,
            Column("Weights", ".spec.model.weightsSha256", priority=1),
        ),
    ),
    Resource(
        routes.RouteTable,
        routes.KIND,
        routes.PLURAL,
        "rtable",
        (
            Column("Generation", ".spec.generation", "integer"),
            Column("Route", ".spec.routes[0].name", description="The best admissible route"),
            _AGE,
            Column("Max-rate", ".spec.routes[0].maxRatePerSecond", priority=1),
        ),
    ),
)


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """A JSON schema as pydantic writes it, in the form that Kubernetes accepts."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return structural(node, definitions)
    if "anyOf" in node and "x-kubernetes-int-or-string" not in node:
        (present,) = [option for option in node["anyOf"] if option != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return structural({**present, **rest}, definitions)
    result: Schema = {}
    for key, value in node.items():
        match key:
            case "properties":
                result[key] = {name: structural(child, definitions) for name, child in value.items()}
            case "items":
                result[key] = structural(value, definitions)
            case "additionalProperties" if isinstance(value, dict):
                result[key] = structural(value, definitions)
            case "const":
                result["enum"] = [value]
            case "default" if value is None or value == []:
                continue
            case "default" if isinstance(value, dict):
                result[key] = _without_nulls(value)
            case _ if key not in _DROPPED:
                result[key] = value
    if result.get("type") == "integer":
        result["format"] = "int64"
    if names := node.get("propertyNames"):
        # OpenAPI v3 in Kubernetes has no form for keys: a CEL rule on the map takes the place of their pattern.
        result["x-kubernetes-validations"] = _key_rules(structural(names, definitions))
    return result


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nulls(child) for key, child in value.items() if child is not None}
        case list():
            return [_without_nulls(child) for child in value]
        case _:
            return value


def _key_rules(names: Schema) -> list[Schema]:
    found = [
        {"rule": f"self.all(k, {rule['rule'].replace('self.', 'k.')})", "message": f"a key {rule['message']}"}
        for rule in names.get("x-kubernetes-validations", [])
    ]
    longest = names.get("maxLength")
    if longest is not None:
        found.append(
            {"rule": f"self.all(k, size(k) <= {longest})", "message": f"a key may have at most {longest} characters"}
        )
    return found


def unbounded(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the parts of a schema that have no limit."""
    match node.get("type"):
        case "string" if not {"maxLength", "enum", "format"} & node.keys():
            yield f"{path}: a string without maxLength"
        case "integer" if not {"minimum", "maximum"} <= node.keys():
            yield f"{path}: an integer without minimum and maximum"
        case "number":
            yield f"{path}: a floating-point number"
        case "array":
            if "maxItems" not in node:
                yield f"{path}: a list without maxItems"
            yield from unbounded(node["items"], f"{path}[]")
        case "object":
            if "additionalProperties" in node:
                if "maxProperties" not in node:
                    yield f"{path}: a map without maxProperties"
                yield from unbounded(node["additionalProperties"], f"{path}.*")
            for name, child in node.get("properties", {}).items():
                yield from unbounded(child, f"{path}.{name}")


def schema(resource: Resource) -> Schema:
    """The resource's OpenAPI schema. Raises ``ValueError`` naming every part that lacks a limit."""
    raw = resource.model.model_json_schema(by_alias=True)
    found = structural(raw, raw.get("$defs", {}))
    properties = found["properties"]
    if missing := [line for name in ("spec", "status") for line in unbounded(properties.get(name, {}), f".{name}")]:
        raise ValueError(f"{resource.kind} needs limits:\n" + "\n".join(missing))
    root: Schema = {
        "description": found["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": properties["spec"],
        },
    }
    if "status" in properties:
        status = {key: value for key, value in properties["status"].items() if key != "default"}
        if resource.default_status is not None:
            status["default"] = resource.default_status
        root["properties"]["status"] = status
    if "x-kubernetes-validations" in found:
        root["x-kubernetes-validations"] = found["x-kubernetes-validations"]
    return root


def manifest(resource: Resource) -> Schema:
    """The whole CustomResourceDefinition."""
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema(resource)},
        "additionalPrinterColumns": [column.manifest() for column in resource.columns],
    }
    if "status" in version["schema"]["openAPIV3Schema"]["properties"]:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short],
                "categories": ["splitplane"],
            },
            "versions": [version],
        },
    }


def render(resource: Resource) -> str:
    """The manifest as YAML, the same on every machine."""
    # By way of JSON, so that shared sub-schemas do not turn into YAML anchors.
    plain = json.loads(json.dumps(manifest(resource)))
    header = "# Generated by `python -m splitplane.api.crds` from operator/splitplane/api. Do not edit.\n"
    return header + yaml.safe_dump(plain, sort_keys=False, width=120, allow_unicode=True)


def files(root: Path) -> dict[Path, str]:
    """Every generated file below the repository's root, with its text."""
    return {
        folder / resource.file: render(resource)
        for folder in (root / "crds", root / "charts" / "splitplane" / "files" / "crds")
        for resource in RESOURCES
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` say which are out of date."""
    parser = argparse.ArgumentParser(description="Generate the custom resource definitions from the pydantic models.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository's root (default: here)")
    options = parser.parse_args(arguments)
    if not (options.root / "pyproject.toml").is_file():
        parser.error(f"{options.root} is not the repository's root; call this there or give --root")
    stale = [
        path
        for path, text in files(options.root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if options.check:
            print(f"{path} is out of date: run `python -m splitplane.api.crds`", file=sys.stderr)  # noqa: T201
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files(options.root)[path], encoding="utf-8")
            print(f"wrote {path}")  # noqa: T201
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
