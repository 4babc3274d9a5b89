"""kubeconform with the schemas of a running API server: none is fetched, and custom resources have theirs."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from splitplane.local.binaries import Tool, built

Json = dict[str, Any]

TOOL = Tool(
    "kubeconform", "kubeconform", "github.com/yannh/kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform",
    ("-v",), lambda found, pinned: found == pinned, minutes=0.4, modules=Path(__file__).with_name("gomodules"),
)  # fmt: skip

_NUMBER_OR_TEXT: Json = {"oneOf": [{"type": "string"}, {"type": "number"}]}
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def check(manifests: str, openapi: Json, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run kubeconform over the documents of ``manifests``.

    ``openapi`` is what the API server answers at ``/openapi/v2``; ``folder`` takes the schemas that are made of it.
    """
    for name, schema in _schemas(openapi):
        (folder / f"{name}.json").write_text(json.dumps(schema))
    location = f"{folder}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json"
    command = [str(built(TOOL)), "-strict", "-summary", "-output=json", f"-schema-location={location}"]
    return subprocess.run(command, input=manifests, capture_output=True, text=True, check=False, timeout=120)


def _schemas(openapi: Json) -> Iterable[tuple[str, Json]]:
    definitions: Mapping[str, Json] = openapi["definitions"]
    for definition in definitions.values():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group, version = kind["group"], kind["version"]
            # kubeconform takes what stands before the slash, and the core group has none.
            yield f"{kind['kind'].lower()}-{group or version}-{version}", _strict(definition, definitions)


def _strict(node: Any, definitions: Mapping[str, Json], within: tuple[str, ...] = ()) -> Any:
    """A part of OpenAPI 2 as a JSON schema of its own that refuses unknown fields."""
    if isinstance(node, list):
        return [_strict(item, definitions, within) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(reference := node.get("$ref"), str):
        name = reference.rpartition("/")[2]
        if name == _QUANTITY:
            return _NUMBER_OR_TEXT
        # Only schemas of schemas hold themselves, and only in CustomResourceDefinitions.
        return {} if name in within else _strict(definitions[name], definitions, (*within, name))
    if node.get("format") == "int-or-string":
        return _NUMBER_OR_TEXT
    strict = {key: _strict(value, definitions, within) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
        strict["additionalProperties"] = node.get("x-kubernetes-preserve-unknown-fields", False)
    return strict
