"""Volumes on the embedded cluster: what pods read and write, how it follows its source, and a pod's own API access."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from splitplane.local.agent import volumes
from splitplane.local.agent.addresses import AddressPool
from splitplane.local.agent.api import Api
from splitplane.local.agent.cluster import ClusterReader
from splitplane.local.agent.config import load
from splitplane.local.agent.events import Events
from splitplane.local.agent.following import ObjectFollower
from splitplane.local.agent.guard import Guard
from splitplane.local.agent.pod_volumes import PodVolumes
from splitplane.local.agent.services import Services
from splitplane.local.agent.starts import Turns
from splitplane.local.cluster import Cluster
from tests.support.agent_pods import Kubectl, Object, Pods, container, pod, until

pytestmark = pytest.mark.integration

TREE = """
import json, os, sys
found = {}
for root, folders, names in os.walk(sys.argv[1], followlinks=True):
    folders[:] = [f for f in folders if not f.startswith('..')]
    for path in (os.path.join(root, name) for name in names):
        found[os.path.relpath(path, sys.argv[1])] = open(path).read()
print(json.dumps(found))
"""
WATCH = """
import pathlib, sys, time
last = None
while True:
    text = pathlib.Path(sys.argv[1]).read_text()
    if text != last: print(text, flush=True)
    last = text
    time.sleep(0.1)
"""


@pytest.fixture
def pods(kubectl: Kubectl, namespace: str) -> Pods:
    return Pods(kubectl, namespace)


def claims(token: str) -> Object:
    """What a token says of itself."""
    found: Object = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return found


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def mounted(name: str, path: str, **more: object) -> list[Object]:
    return [{"name": name, "mountPath": path, **more}]


def test_config_maps_secrets_and_downward_files_are_projected(pods: Pods) -> None:
    projected = {
        "sources": [
            {"configMap": {"name": "conf", "items": [{"key": "a", "path": "deep/er/a.txt"}]}},
            {"secret": {"name": "keys"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"configMap": {"name": "absent", "optional": True}},
        ]
    }
    secret: Object = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"password": "p4ss"},
    }  # fmt: skip
    pods.apply(
        config_map("conf", a="A", b="B"),
        secret,
        pod(
            "reader",
            container(TREE, "/all", volumeMounts=mounted("all", "/all")),
            volumes=[{"name": "all", "projected": projected}],
        ),
    )
    assert pods.output("reader") == {"deep/er/a.txt": "A", "password": "p4ss", "labels": 'app="reader"'}


def test_a_sub_path_is_one_file_of_a_volume(pods: Pods) -> None:
    program = "import json, os, sys; print(json.dumps([open(sys.argv[1]).read(), os.path.exists(sys.argv[2])]))"
    mount = mounted("conf", "/etc/app/a.conf", subPath="a")
    pods.apply(
        config_map("conf", a="A", b="B"),
        pod(
            "one",
            container(program, "/etc/app/a.conf", "/etc/app/b", volumeMounts=mount),
            volumes=[{"name": "conf", "configMap": {"name": "conf"}}],
        ),
    )
    assert pods.output("one") == ["A", False]


def test_a_missing_config_map_holds_the_pod_until_it_comes(pods: Pods) -> None:
    volumes = [{"name": "conf", "configMap": {"name": "later"}}]
    pods.apply(pod("patient", container(TREE, "/c", volumeMounts=mounted("conf", "/c")), volumes=volumes))
    assert 'configmap "later" not found' in pods.event("patient", "FailedMount")
    assert pods.waiting("patient", "ContainerCreating") == 'configmap "later" not found'
    pods.apply(config_map("later", k="v"))
    assert pods.output("patient") == {"k": "v"}


def test_a_mounted_config_map_and_mounted_labels_follow_their_source(pods: Pods) -> None:
    labels = {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}
    pods.apply(
        config_map("conf", level="info"),
        pod(
            "follower",
            container(WATCH, "/c/level", volumeMounts=mounted("conf", "/c")),
            container(WATCH, "/l/labels", name="labels", volumeMounts=mounted("labels", "/l")),
            volumes=[
                {"name": "conf", "configMap": {"name": "conf"}},
                {"name": "labels", "downwardAPI": labels},
            ],
        ),
    )
    pods.ready("follower")
    pods.apply(config_map("conf", level="debug"))
    pods("label", "pod", "follower", "extra=yes")
    until("the new value", lambda: pods("logs", "follower", "-c", "main").split() == ["info", "debug"])
    until("the new label", lambda: 'extra="yes"' in pods("logs", "follower", "-c", "labels"))


def test_a_claim_keeps_its_files_between_pods(pods: Pods) -> None:
    claim: Object = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "store"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }  # fmt: skip
    volumes = [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}]
    write = "import sys; open(sys.argv[1], 'w').write('kept'); print('{}')"
    mount = mounted("store", "/store", subPath="part")
    pods.apply(claim, pod("writer", container(write, "/store/f", volumeMounts=mount), volumes=volumes))
    pods.output("writer")
    pods.apply(pod("later", container(TREE, "/store", volumeMounts=mounted("store", "/store")), volumes=volumes))
    assert pods.output("later") == {"part/f": "kept"}


def test_a_host_path_must_exist_as_it_says(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("here")

    def using(name: str, path: Path) -> Object:
        volumes = [{"name": "host", "hostPath": {"path": str(path), "type": "Directory"}}]
        return pod(name, container(TREE, "/host", volumeMounts=mounted("host", "/host")), volumes=volumes)

    pods.apply(using("present", tmp_path), using("absent", tmp_path / "none"))
    assert pods.output("present") == {"f": "here"}
    assert "does not exist" in pods.event("absent", "FailedMount")


def test_a_kind_of_volume_that_is_not_offered_says_so(pods: Pods) -> None:
    volumes = [{"name": "share", "nfs": {"server": "127.0.0.1", "path": "/x"}}]
    pods.apply(pod("nfs", container(TREE, "/x", volumeMounts=mounted("share", "/x")), volumes=volumes))
    assert "nfs is not offered by the embedded cluster (offered: emptyDir" in pods.event("nfs", "FailedMount")


def test_the_kubeconfig_of_a_pod_is_its_own_service_account(pods: Pods, namespace: str) -> None:
    program = """
import json, kubernetes, yaml, os
kubernetes.config.load_kube_config()
review = kubernetes.client.AuthenticationV1Api().create_self_subject_review({})
api = kubernetes.client.CoreV1Api()
try: api.list_namespaced_secret('kube-system'); refused = None
except kubernetes.client.ApiException as error: refused = error.status
config = yaml.safe_load(open(os.environ['KUBECONFIG']))
print(json.dumps({'user': review.status.user_info.username, 'extra': review.status.user_info.extra,
                  'refused': refused, 'namespace': config['contexts'][0]['context']['namespace']}))
"""
    pods.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}},
        pod("caller", container(program), serviceAccountName="runner"),
    )
    seen = pods.output("caller")
    assert seen["user"] == f"system:serviceaccount:{namespace}:runner"
    assert seen["extra"]["authentication.kubernetes.io/pod-name"] == ["caller"]
    assert seen["refused"] == 403
    assert seen["namespace"] == namespace


def test_without_a_token_mount_there_is_no_kubeconfig(pods: Pods) -> None:
    program = "import json, os; print(json.dumps('KUBECONFIG' in os.environ))"
    pods.apply(pod("anonymous", container(program), automountServiceAccountToken=False))
    assert pods.output("anonymous") is False


def test_a_projected_token_has_its_audience_and_lifetime(pods: Pods) -> None:
    source = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "models"}}
    program = """
import base64, json, sys
claims = json.loads(base64.urlsafe_b64decode(open(sys.argv[1]).read().split('.')[1] + '=='))
print(json.dumps({'aud': claims['aud'], 'life': claims['exp'] - claims['iat']}))
"""
    volumes = [{"name": "t", "projected": {"sources": [source]}}]
    pods.apply(pod("token", container(program, "/t/token", volumeMounts=mounted("t", "/t")), volumes=volumes))
    assert pods.output("token") == {"aud": ["models"], "life": 600}


async def test_a_projected_token_is_replaced_before_it_ends(
    cluster: Cluster, pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The API's shortest life is 600 s: replaced after two of them, not after 480.
    monkeypatch.setattr(volumes, "RENEWED_AT_SHARE", 2 / 600)
    source = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
    spec = {"nodeName": "edge-1", "volumes": [{"name": "t", "projected": {"sources": [source]}}]}
    pods.apply(pod("holder", container("import time; time.sleep(600)"), automountServiceAccountToken=False, **spec))
    config = load(cluster.paths.node("edge-1") / "agent.json")
    api = await Api.connect(config.kubeconfig)
    services = Services(
        config=config, api=api, reader=ClusterReader(api), events=Events(api, config.node),
        guard=Guard(), addresses=AddressPool(config.pod_cidr, []), follower=ObjectFollower(api),
        turns=Turns(tmp_path),
    )  # fmt: skip
    own = PodVolumes(services, pods.ready("holder"), tmp_path, "")
    try:
        path = (await own.ready())["t"] / "token"
        first = path.read_text()
        # The pod's volumes are kept up by this process's loop, so it must not be blocked.
        await asyncio.to_thread(until, "another token", lambda: path.read_text() != first)
        second = path.read_text()
    finally:
        own.close()
        services.guard.close()
        await api.close()
    assert claims(second)["iat"] >= claims(first)["iat"] + 2
    assert claims(second)["exp"] > claims(first)["exp"]
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": second}}
    verdict = json.loads(pods("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))["status"]
    assert verdict["authenticated"]
    assert verdict["user"]["username"] == f"system:serviceaccount:{pods.namespace}:default"


def test_a_deleted_pod_leaves_no_folder(pods: Pods, state_home: Path) -> None:
    pods.apply(pod("brief", container("print(1)")))
    shown = pods.phase("brief", "Succeeded")
    [folder] = state_home.glob(f"splitplane/*/nodes/*/pods/{shown['metadata']['uid']}")
    assert json.loads((folder / "record.json").read_text())["phase"] == "Succeeded"
    pods("delete", "pod", "brief")
    until("the folder to go", lambda: not folder.exists())
