"""What Splitplane asks of the API server, written down by the API server itself, so that its rights can be compared."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FOLDER = "audit"
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts:splitplane-system"]},
        {"level": "None"},
    ],
}
_SETTINGS = {"audit-policy-file": "policy.json", "audit-log-path": "audit.log"}


def enable(config: dict[str, Any], *, shared: Path, mounted: str) -> None:
    """Have a kind configuration's API server write its log into ``shared``, which nodes see at ``mounted``."""
    folder = shared / _FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "policy.json").write_text(json.dumps(_POLICY))
    inside = f"{mounted}/{_FOLDER}"
    volume = {"name": "audit", "hostPath": inside, "mountPath": inside, "pathType": "Directory"}
    patch = [
        *(
            {"op": "add", "path": "/apiServer/extraArgs/-", "value": {"name": name, "value": f"{inside}/{file}"}}
            for name, file in _SETTINGS.items()
        ),
        {"op": "add", "path": "/apiServer/extraVolumes", "value": [volume]},
    ]
    config["kubeadmConfigPatchesJSON6902"] = [
        {"group": "kubeadm.k8s.io", "version": "v1beta4", "kind": "ClusterConfiguration", "patch": json.dumps(patch)}
    ]


def requests(shared: Path) -> Iterator[dict[str, Any]]:
    """The audit events so far, oldest first. Of a watch there is one when it begins and one when it ends."""
    with (shared / _FOLDER / "audit.log").open() as log:
        yield from map(json.loads, log)
