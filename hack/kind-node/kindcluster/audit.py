"""What Splitplane asks of the API server, written down by the API server itself, so that its rights can be compared."""

import json
from pathlib import Path
from typing import Any

_FOLDER = "audit"
_OWN = "system:serviceaccounts:splitplane-system"
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "RequestResponse",  # tells which rights a Role gives that goes again with its pipeline
            "userGroups": [_OWN],
            "resources": [{"group": "rbac.authorization.k8s.io", "resources": ["roles"]}],
        },
        {"level": "Metadata", "userGroups": [_OWN]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},  # pipelines' own, in any namespace
        {"level": "None"},
    ],
}
_LOG = "audit.log"
_MEGABYTES = "1000"
"""Of the log, and of what it was before it was begun anew: a cluster that stays up for weeks must not fill the disk."""


def enable(config: dict[str, Any], *, shared: Path, mounted: str) -> None:
    """Have a kind configuration's API server write its log into ``shared``, which nodes see at ``mounted``."""
    folder = shared / _FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "policy.json").write_text(json.dumps(_POLICY))
    inside = f"{mounted}/{_FOLDER}"
    settings = {
        "audit-policy-file": f"{inside}/policy.json",
        "audit-log-path": f"{inside}/{_LOG}",
        "audit-log-maxsize": _MEGABYTES,
        "audit-log-maxbackup": "1",
    }
    volume = {"name": "audit", "hostPath": inside, "mountPath": inside, "pathType": "Directory"}
    patch = [
        *(
            {"op": "add", "path": "/apiServer/extraArgs/-", "value": {"name": name, "value": value}}
            for name, value in settings.items()
        ),
        {"op": "add", "path": "/apiServer/extraVolumes", "value": [volume]},
    ]
    config["kubeadmConfigPatchesJSON6902"] = [
        {"group": "kubeadm.k8s.io", "version": "v1beta4", "kind": "ClusterConfiguration", "patch": json.dumps(patch)}
    ]


def log_path(mounted: str) -> str:
    """The log as the control plane's node sees it. It is root's there, so this machine's user may not read it."""
    return f"{mounted}/{_FOLDER}/{_LOG}"


def events(log: str) -> list[dict[str, Any]]:
    """What a log tells so far, oldest first. Of a watch there is one event when it begins and one when it ends."""
    # The API server may be at its last line just now.
    return [json.loads(line) for line in log.splitlines(keepends=True) if line.endswith("\n")]
