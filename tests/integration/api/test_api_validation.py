"""The API server itself refuses resources that cannot work, names the field and says what to do.

Each wrong resource has a twin that differs from it in one character or one number, and is accepted: so it is this very
rule that refuses, and not some other.
"""
# ruff: noqa: E501 - the tables are read across

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

ROOT = Path(__file__).parents[3]
PLURALS = {
    "InferencePipeline": "inferencepipelines",
    "ModelProfile": "modelprofiles",
    "RouteTable": "routetables",
}
Object = dict[str, Any]


def _example(name: str) -> Object:
    resource: Object = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    return resource


def _pitch_tracker() -> Object:
    return _example("pitch-tracker")


def _sentence_encoder() -> Object:
    return _example("sentence-encoder")


def _with(resource: Object, **spec: Any) -> Object:
    resource["spec"] |= spec
    return resource


def _fixed() -> Object:
    stages = [{"tier": "edge", "firstCut": 0, "lastCut": 3}, {"tier": "cloud", "firstCut": 3, "lastCut": 7}]
    return _with(_pitch_tracker(), partitioning={"mode": "Fixed", "fixed": {"stages": stages, "codecs": ["int8"]}})


def _two_edges() -> Object:
    """Tiers edge (trusted) and edgy (not)."""
    resource = _pitch_tracker()
    resource["spec"]["tiers"][1]["name"] = "edgy"
    return resource


def _fixed_two_edges() -> Object:
    resource = _fixed()
    resource["spec"]["tiers"][1]["name"] = "edgy"
    resource["spec"]["partitioning"]["fixed"]["stages"][1]["tier"] = "edgy"
    return resource


def _calibrated() -> Object:
    """Real inputs, with the claim ``splitplane-models`` for the weights the claim ``data`` in a volume, and ``cached`` for
    a cache on a tier that is not trusted."""
    resource = _pitch_tracker()
    resource["spec"]["model"]["calibration"] = {"uri": "pvc://inputs/x", "sha256": "a" * 64}
    resource["spec"]["model"]["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
    next(tier for tier in resource["spec"]["tiers"] if not tier.get("trusted"))["weightsCache"] = {
        "claimName": "cached"
    }
    return resource


def _two_mounts() -> Object:
    resource = _pitch_tracker()
    resource["spec"]["model"]["volumeMounts"].append({"name": "code", "mountPath": "/models/more"})
    return resource


def _pulling() -> Object:
    resource = _pitch_tracker()
    resource["spec"]["model"] |= {"image": "mirror.example/runtime:1", "imagePullSecrets": [{"name": "pull"}]}
    return resource


def _free() -> Object:
    resource = _pitch_tracker()
    resource["spec"]["model"]["inputs"][0]["freeDimensions"] = [{"dimension": 1, "name": "samples"}]
    return resource


def _sites() -> Object:
    """Short names, as those of sites are added."""
    resource = _with(_pitch_tracker(), sites={"topologyKey": "topology.kubernetes.io/zone"})
    resource["metadata"]["name"] = "pitch"
    return resource


def _sharing() -> Object:
    return _with(_sites(), sites={"topologyKey": "topology.kubernetes.io/zone", "sharedTier": "cloud"})


def _route_table() -> Object:
    tensor = {"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}
    stages = [
        {"stage": "p-edge-1", "tier": "edge", "first": 0, "last": 3},
        {"stage": "p-cloud-2", "tier": "cloud", "first": 3, "last": 7},
    ]
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "RouteTable",
        "metadata": {"name": "p"},
        "spec": {
            "generation": 7,
            "model": {"name": "p", "inputs": [tensor], "outputs": [tensor]},
            "routes": [{"name": "r", "stages": stages, "codecs": ["int8"], "maxRatePerSecond": "13.4"}],
            "stages": ["p-edge-1", "p-cloud-2"],
            "links": [{"source": "edge", "target": "cloud", "probes": ["10.0.0.7:9000"]}],
        },
    }


def _profile() -> Object:
    tensor = {"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}
    cut = {
        "name": "input",
        "tensors": [{"name": "frames", "datatype": "FP32", "sampleShape": [1024]}],
        "wireBytes": [{"codec": "fp32", "bytes": 4096}, {"codec": "fp16", "bytes": 2048}],
        "schemaHash": "aa",
    }
    device = {
        "deviceClass": "edge",
        "prefixNanoseconds": [0, 3700000],
        "timeCv": "0.05",
        "overheadNanoseconds": 400000,
        "baseMemoryBytes": 300000000,
    }
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": "p"},
        "spec": {
            "fingerprint": "f",
            "model": {"factory": "m:build", "weightsSha256": "0" * 64},
            "inputs": [tensor],
            "outputs": [tensor],
            "cuts": [cut, cut],
            "segments": [{"name": "all", "weightBytes": 88000000}],
            "activationBytes": 1000000,
            "devices": [device, {**device, "deviceClass": "cloud"}],
        },
    }


@dataclass(frozen=True)
class Twins:
    """``base`` with ``wrong`` at ``path`` is refused, naming ``field`` (default: the path) and saying ``words``."""

    base: Any
    path: str
    wrong: Any
    right: Any
    words: str
    field: str = ""

    def resource(self, value: Any) -> Object:
        resource: Object = self.base()
        parts: list[Any] = [int(part) if part.isdecimal() else part for part in self.path.split("/")]
        *parents, last = parts
        target: Any = functools.reduce(lambda node, part: node[part], parents, resource)
        target[last] = value
        return resource

    @property
    def named(self) -> str:
        """The field as the API server writes it: ``spec.tiers[0].name``."""
        if self.field:
            return self.field
        text = self.path.replace("/", ".")
        for index in range(10):
            text = text.replace(f".{index}", f"[{index}]")
        return text


SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
TO_100 = "should be less than or equal to 100"

TWINS = [
    # The model
    Twins(_pitch_tracker, "spec/model/factory", "pitch_tracker.build", "pitch_tracker:build", "must be module:callable"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "pvs://models/a", "pvc://models/a", "must be pvc://<claim>/<path>"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "file://models/a", "file:///models/a", "file:///<path"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "pvc://models/../a", "pvc://models/..a", "without . or .. in it"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "pvc://models/a/..", "pvc://models/a/..b", "without . or .. in it"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "file:///models/", "file:///models/a", "must be pvc://<claim>/<path>"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "https://models.example:1/a#b=%2F", "https://models.example:1/a?b=%2F", "https://<host>/<path>"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "s3://Models/a", "s3://models/a", "s3://<bucket>/<key>"),
    Twins(_pitch_tracker, "spec/model/weights/uri", "oci://registry.example/models/1", "oci://registry.example/models:1", "oci://<registry>"),
    Twins(_pitch_tracker, "spec/model/weights/sha256", SHA[:-1], SHA, "64 lower-case hexadecimal digits"),
    Twins(_pitch_tracker, "spec/model/weights/sha256", SHA.replace("9f", "9F"), SHA, "see sha256sum"),
    Twins(_pitch_tracker, "spec/model/inputs/0/shape/0", 1, -1, "must be -1", "spec.model.inputs[0].shape"),
    Twins(_pitch_tracker, "spec/model/inputs/0/shape/1", 0, 1, "must be at least 1", "spec.model.inputs[0].shape"),
    Twins(_free, "spec/model/inputs/0/freeDimensions/0/dimension", 2, 1, "must be one of shape", "spec.model.inputs[0].freeDimensions"),
    Twins(_free, "spec/model/inputs/0/freeDimensions/0/name", "1s", "s1s", "letters, digits and underscores"),
    Twins(_pitch_tracker, "spec/model/inputs/0/datatype", "FP3", "FP32", "supported values"),
    Twins(_sentence_encoder, "spec/model/inputs/1/name", "input_ids", "input_id", "Duplicate value", "spec.model.inputs[1]"),
    Twins(_pulling, "spec/model/image", "runtime 1", "runtime:1", "must be an image reference"),
    Twins(_pulling, "spec/model/image", "foo/Bar:x", "foo/bar:x", "in lower-case letters"),
    Twins(_pulling, "spec/model/image", "foo/bar::x", "foo/bar:x", "must be an image reference"),
    Twins(_pulling, "spec/model/image", "mirror.example:p/bar", "mirror.example:5/bar", "must be an image reference"),
    Twins(_pulling, "spec/model/image", f"bar:1@sha256:{'0' * 31}", f"bar:1@sha256:{'0' * 32}", "must be an image reference"),
    Twins(_pulling, "spec/model/imagePullPolicy", "Alway", "Always", "supported values"),
    Twins(_pulling, "spec/model/imagePullSecrets/0/name", "Pull", "pull", "the name of an object in this namespace"),
    Twins(_pitch_tracker, "spec/model/env/0/name", "1A", "A1A", "not a digit first"),
    Twins(_pitch_tracker, "spec/model/env/0/name", "SPLITPLANE_TIER", "SPLITPLANETIER", "set by the operator"),
    Twins(_pitch_tracker, "spec/model/env/0/name", "TMPDIR", "TMPDIRS", "set by the operator"),
    Twins(_calibrated, "spec/model/calibration/uri", "pvc://splitplane-models/x", "pvc://splitplane-model/x", "claim of its own", "spec.model.calibration.uri"),
    Twins(_calibrated, "spec/model/calibration/uri", "pvc://data/x", "pvc://dat/x", "claim of its own", "spec.model.calibration.uri"),
    Twins(_calibrated, "spec/model/calibration/uri", "pvc://cached/x", "pvc://cache/x", "claim of its own", "spec.model.calibration.uri"),
    Twins(_pitch_tracker, "spec/model/volumeMounts/0/name", "cod", "code", "one of spec.model.volumes", "spec.model.volumeMounts"),
    Twins(_pitch_tracker, "spec/model/volumeMounts/0/mountPath", "code", "/code", "must be an absolute path"),
    Twins(_pitch_tracker, "spec/model/volumeMounts/0/mountPath", "/tmp", "/tmp2", "choose another path"),
    Twins(_pitch_tracker, "spec/model/volumeMounts/0/mountPath", "/code/..", "/code/...", "without . or .. in it"),
    Twins(_pitch_tracker, "spec/model/volumeMounts/0/subPath", "a/../b", "a/.../b", "must be a relative path"),
    Twins(_two_mounts, "spec/model/volumeMounts/1/mountPath", "/models/code", "/models/cod", "Duplicate value", "spec.model.volumeMounts[1]"),
    # Objectives
    Twins(_pitch_tracker, "spec/objectives/latencyP95Milliseconds", 0, 1, "greater than or equal to 1"),
    Twins(_pitch_tracker, "spec/objectives/maxCostPerHour", "2,00", "2.00", 'such as "0.80"'),
    Twins(_pitch_tracker, "spec/objectives/maxLeakage", "1.01", "1.00", "from 0 to 1"),
    Twins(_pitch_tracker, "spec/objectives/maxAccuracyLoss", "0,01", "0.01", "from 0 to 1"),
    Twins(_pitch_tracker, "spec/objectives/defence", {"noise": "0"}, {"noise": "1"}, "give noise, dropout, or both"),
    Twins(
        _pitch_tracker, "spec/objectives/defence", {"noise": "1", "dropout": "1.0"}, {"noise": "1", "dropout": "0.0"},
        "less than 1",
    ),
    Twins(_pitch_tracker, "spec/objectives/defence", {"noise": "-1"}, {"noise": "1"}, 'such as "0.5"'),
    Twins(
        _pitch_tracker, "spec/model/calibration", {"uri": "files:///f.npz", "sha256": "a" * 64},
        {"uri": "file:///f.npz", "sha256": "a" * 64}, "must be pvc://",
    ),
    Twins(_pitch_tracker, "spec/objectives/prefer", "Costs", "Cost", "supported values"),
    Twins(_pitch_tracker, "spec/objectives/prefer", "Privac", "Privacy", "supported values"),
    # Tiers
    Twins(_pitch_tracker, "spec/tiers/1/name", "edge", "edge2", "Duplicate value", "spec.tiers[1]"),
    Twins(_pitch_tracker, "spec/tiers/1/name", "cloud-", "cloud", "inner dashes"),
    Twins(_pitch_tracker, "spec/tiers/1/name", "c" * 21, "c" * 20, "may not be more than 20"),
    Twins(_pitch_tracker, "spec/tiers/0/deviceClass", "Edge", "edge", "must be lower-case"),
    Twins(_pitch_tracker, "spec/tiers/0/replicas/min", 9, 8, "must not be larger than max"),
    Twins(_pitch_tracker, "spec/tiers/0/replicas/max", 101, 100, TO_100),
    Twins(_pitch_tracker, "spec/tiers/0/pricePerHour", "-0.05", "0.05", "zero or more"),
    Twins(_pitch_tracker, "spec/tiers/1/egressPricePerGiB", "9e2", "992", "without an exponent"),
    Twins(_pitch_tracker, "spec/tiers/0/resources/requests/memory", "1537Mi", "1536Mi", "no request may be larger than the limit", "spec.tiers[0].resources.requests"),
    Twins(_pitch_tracker, "spec/tiers/0/resources/limits/memory", "1536Mj", "1536Mi", "must be a quantity", "spec.tiers[0].resources.limits[memory]"),
    Twins(_pitch_tracker, "spec/tiers/0/resources/requests/cpu", "-1", "1", "zero or more", "spec.tiers[0].resources.requests[cpu]"),
    Twins(_pitch_tracker, "spec/tiers/0/resources/requests/cpu", -1, 1, "zero or more", "spec.tiers[0].resources.requests[cpu]"),
    Twins(_pitch_tracker, "spec/tiers/0/nodeSelector", {"a b": "c"}, {"ab": "c"}, "a key must be a label's name"),
    Twins(_pitch_tracker, "spec/tiers/0/nodeSelector", {"/a": "c"}, {"b/a": "c"}, "a key must be a label's name"),
    Twins(_pitch_tracker, "spec/tiers/0/nodeSelector", {"a": "b-"}, {"a": "b"}, "must be letters, digits", "spec.tiers[0].nodeSelector[a]"),
    Twins(_pitch_tracker, "spec/tiers/0/nodeSelector", {"a": "-"}, {"a": ""}, "must be letters, digits", "spec.tiers[0].nodeSelector[a]"),
    Twins(_pitch_tracker, "spec/tiers/0/resources/limits", {"cpus": 1}, {"cpu": 1}, "a device such as example.com/gpu"),
    Twins(_pitch_tracker, "spec/tiers/0/tolerations/0/key", "splitplane.dev/", "splitplane.dev/a", "must be a label's name"),
    Twins(_pitch_tracker, "spec/tiers/0/tolerations/0/effect", "NoSchedul", "NoSchedule", "supported values"),
    # Partitioning
    Twins(_pitch_tracker, "spec/partitioning/mode", "Autos", "Auto", "supported values"),
    Twins(_pitch_tracker, "spec/partitioning/maxPartitions", 3, 2, "should be less than or equal to 2"),
    Twins(_pitch_tracker, "spec/partitioning/codecs/0", "fp31", "fp32", "supported values"),
    Twins(_fixed, "spec/partitioning/fixed/stages/0/firstCut", 1, 0, "must start at cut 0", "spec.partitioning.fixed.stages"),
    Twins(_fixed, "spec/partitioning/fixed/stages/1/firstCut", 4, 3, "must equal the first stage's lastCut", "spec.partitioning.fixed.stages"),
    Twins(_fixed, "spec/partitioning/fixed/stages/1/lastCut", 3, 4, "must be larger than firstCut"),
    Twins(_fixed, "spec/partitioning/fixed/stages/1/tier", "clou", "cloud", "the name of one of spec.tiers", "spec.partitioning.fixed.stages"),
    Twins(_fixed_two_edges, "spec/partitioning/fixed/stages/0/tier", "edgy", "edge", "rawInputStaysTrusted", "spec.partitioning.fixed.stages"),
    Twins(_fixed, "spec/partitioning/maxPartitions", 1, 2, "at least the number of stages"),
    # Re-planning, gateway, names
    Twins(_pitch_tracker, "spec/replanning/intervalSeconds", 4, 5, "greater than or equal to 5"),
    Twins(_pitch_tracker, "spec/replanning/cooldownSeconds", 86401, 86400, "less than or equal to 86400"),
    Twins(_pitch_tracker, "spec/replanning/scaleDownWindowSeconds", 14, 15, "must be 0 or at least intervalSeconds"),
    Twins(_pitch_tracker, "spec/replanning/minGainPercent", 101, 100, TO_100),
    Twins(_pitch_tracker, "spec/replanning/maxUtilizationPercent", 96, 95, "less than or equal to 95"),
    Twins(_pitch_tracker, "spec/gateway/tier", "edgo", "edge", "must be the name of one of spec.tiers"),
    Twins(_pitch_tracker, "spec/gateway/replicas", 17, 16, "less than or equal to 16"),
    Twins(_pitch_tracker, "spec/gateway/trustedProxies", ["10.0.0.1/8"], ["10.0.0.0/8"], "must be a network"),
    Twins(_two_edges, "spec/gateway/tier", "edgy", "edge", "must be a tier with trusted: true"),
    Twins(_pitch_tracker, "metadata/name", "9pitch", "pitch", "a letter first: it names a Service"),
    Twins(_sites, "metadata/name", "p" * 26, "p" * 25, "at most 30 characters with spec.sites"),
    Twins(_sites, "spec/sites/topologyKey", "splitplane.dev/tier", "splitplane.dev/tie", "selects nodes of one site by this label", "spec.sites"),
    Twins(_sites, "spec/sites/topologyKey", "-zone", "zone", "a label's name"),
    Twins(_sharing, "spec/sites/sharedTier", "clout", "cloud", "must be the name of one of spec.tiers"),
    Twins(_pitch_tracker, "metadata/name", "p" * 41, "p" * 40, "at most 45 characters"),
    # What the operator and the gateway write
    Twins(_route_table, "spec/routes/0/stages/1/stage", "p-cloud-3", "p-cloud-2", "must be listed in spec.stages", "spec.routes"),
    Twins(_route_table, "spec/routes/0/stages/0/first", 1, 0, "must start at cut 0", "spec.routes[0].stages"),
    Twins(_route_table, "spec/routes/0/stages/1/last", 3, 4, "must be larger than first"),
    Twins(_route_table, "spec/routes/0/maxRatePerSecond", "1e4", "1.4", "without an exponent"),
    Twins(_profile, "spec/devices/1/deviceClass", "edge", "edges", "Duplicate value", "spec.devices[1]"),
    Twins(_profile, "spec/devices/0/timeCv", ".05", "0.05", "must be a decimal number"),
]  # fmt: skip

_STAGES = {"stages": [{"tier": "edge", "firstCut": 0, "lastCut": 3}]}


def _tier(index: int, **changes: Any) -> Object:
    resource = _pitch_tracker()
    resource["spec"]["tiers"][index] |= changes
    return resource


def _model(**changes: Any) -> Object:
    resource = _pitch_tracker()
    resource["spec"]["model"] |= changes
    return resource


@dataclass(frozen=True)
class Refused:
    """A resource that is refused, naming ``field`` and saying ``words``; no twin of it is one character away."""

    name: str
    resource: Object
    field: str
    words: str


REFUSED = [
    Refused("mode Fixed without a split", _with(_pitch_tracker(), partitioning={"mode": "Fixed"}), "spec.partitioning.fixed", "required with mode Fixed"),
    Refused("a split without mode Fixed", _with(_pitch_tracker(), partitioning={"mode": "Auto", "fixed": _STAGES}), "spec.partitioning.fixed", "only allowed with mode Fixed"),
    Refused("a crossing without a codec", _with(_fixed(), partitioning={"mode": "Fixed", "fixed": {"stages": _fixed()["spec"]["partitioning"]["fixed"]["stages"]}}), "spec.partitioning.fixed.codecs", "one codec for each crossing"),
    Refused("a codec twice", _with(_pitch_tracker(), partitioning={"codecs": ["int8", "int8"]}), "spec.partitioning.codecs[1]", "Duplicate value"),
    Refused("no codec", _with(_pitch_tracker(), partitioning={"codecs": []}), "spec.partitioning.codecs", "at least 1"),
    Refused("private input without a trusted tier", _tier(0, trusted=False), "spec.tiers", "needs a tier with trusted: true"),
    Refused("no tier", _with(_pitch_tracker(), tiers=[]), "spec.tiers", "at least 1"),
    Refused("a tier of all nodes", _tier(0, nodeSelector={}), "spec.tiers[0].nodeSelector", "at least 1"),
    Refused("a tier without replicas", _tier(0, replicas={"min": 0}), "spec.tiers[0].replicas.max", "Required value"),
    Refused("a price as a number", _tier(0, pricePerHour=0.05), "spec.tiers[0].pricePerHour", "must be of type string"),
    Refused("a toleration of all with a value", _tier(0, tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]), "spec.tiers[0].tolerations[0].value", "leave value out"),
    Refused("a toleration of nothing", _tier(0, tolerations=[{"value": "b"}]), "spec.tiers[0].tolerations[0].operator", "name the taint's key"),
    Refused("a toleration's end without effect NoExecute", _tier(0, tolerations=[{"key": "a", "operator": "Exists", "tolerationSeconds": 1}]), "spec.tiers[0].tolerations[0].tolerationSeconds", "needs effect NoExecute"),
    Refused("a resource's name with a space", _tier(0, resources={"limits": {"example.com/a b": 1}}), "spec.tiers[0].resources.limits", "a device such as example.com/gpu"),
    Refused("a device without a domain", _tier(0, resources={"limits": {"gpu": 1}}), "spec.tiers[0].resources.limits", "a device such as example.com/gpu"),
    Refused("asking clients for nothing", {**_pitch_tracker(), "spec": {**_pitch_tracker()["spec"], "gateway": {"tier": "edge", "clientAuth": {}}}}, "spec.gateway.clientAuth", "name a Secret in bearerTokens"),
    Refused("no gateway", {**_pitch_tracker(), "spec": {k: v for k, v in _pitch_tracker()["spec"].items() if k != "gateway"}}, "spec.gateway", "Required value"),
    Refused("a variable with two values", _model(env=[{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]), "spec.model.env[0].value", "either value or valueFrom"),
    Refused("a variable from nowhere", _model(env=[{"name": "A", "valueFrom": {}}]), "spec.model.env[0].valueFrom", "exactly one of configMapKeyRef and secretKeyRef"),
    Refused("a volume of two kinds", _model(volumes=[{"name": "code", "configMap": {"name": "a"}, "emptyDir": {}}]), "spec.model.volumes[0]", "exactly one of configMap, secret, persistentVolumeClaim and emptyDir"),
    Refused("keys for weights that are mounted", _model(weights={"uri": "pvc://models/a", "sha256": SHA, "secretRef": {"name": "keys"}}), "spec.model.weights.secretRef", "only used for https://"),
    Refused("a volume with the operator's name", _model(volumes=[{"name": "code", "emptyDir": {}}, {"name": "splitplane-weights", "emptyDir": {}}]), "spec.model.volumes[1].name", "are the operator's"),
    Refused("a node's folder as a volume", _model(volumes=[{"name": "code", "hostPath": {"path": "/etc"}}]), "spec.model.volumes[0].hostPath", "unknown field"),
    Refused("sites without a label", _with(_pitch_tracker(), sites={}), "spec.sites.topologyKey", "Required value"),
    Refused("sites that share the gateway's tier", _with(_sites(), sites={"topologyKey": "zone", "sharedTier": "edge"}), "spec.sites.sharedTier", "other than the gateway's"),
    Refused("no room for a site's label", _with(_sites(), tiers=[{**_pitch_tracker()["spec"]["tiers"][0], "nodeSelector": {f"a{n}": "b" for n in range(16)}}]), "spec.sites", "may have 15 labels"),
    Refused("a mistyped field", _with(_pitch_tracker(), objective={}), "spec.objective", "unknown field"),
    Refused("a route without a codec for its crossing", _with(_route_table(), routes=[{**_route_table()["spec"]["routes"][0], "codecs": []}]), "spec.routes[0].codecs", "one codec for each crossing"),
    Refused("a profile with a cut too few", _with(_profile(), segments=_profile()["spec"]["segments"] * 2), "spec.cuts", "one more than segments"),
    Refused("a profile with a time too few", _with(_profile(), segments=_profile()["spec"]["segments"] * 2, cuts=[_profile()["spec"]["cuts"][0]] * 3), "spec.devices", "one entry for each cut"),
]  # fmt: skip


@pytest.fixture(scope="module")
def api(api_kubeconfig: Path, installed: None) -> Iterator[client.CustomObjectsApi]:
    with config.new_client_from_config(str(api_kubeconfig)) as connection:
        yield client.CustomObjectsApi(connection)


def _create(api: client.CustomObjectsApi, resource: Object) -> str:
    """The API server's objection to the resource; empty when it would take it."""
    group, version = resource["apiVersion"].split("/")
    try:
        api.create_namespaced_custom_object(
            group, version, "default", PLURALS[resource["kind"]], resource, dry_run="All", field_validation="Strict"
        )
    except client.ApiException as error:
        if error.status not in (400, 422):
            raise
        return str(json.loads(error.body or "{}")["message"])
    return ""


def _one_apart(wrong: Any, right: Any) -> bool:
    """Whether two values differ in one number, or in one character (changed, added or left out)."""
    if isinstance(wrong, int) and isinstance(right, int):
        return wrong != right
    if isinstance(wrong, dict):
        wrong, right = json.dumps(wrong), json.dumps(right)
    shorter, longer = sorted((wrong, right), key=len)
    if len(shorter) == len(longer):
        return sum(a != b for a, b in zip(shorter, longer, strict=True)) == 1
    return any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))


@pytest.mark.parametrize("twins", TWINS, ids=lambda twins: f"{twins.path}={twins.wrong}")
def test_wrong_resource_is_refused_and_its_twin_accepted(api: client.CustomObjectsApi, twins: Twins) -> None:
    assert _one_apart(twins.wrong, twins.right)
    objection = _create(api, twins.resource(twins.wrong))
    assert twins.named in objection
    assert twins.words in objection
    assert _create(api, twins.resource(twins.right)) == ""


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_resource_that_cannot_work_is_refused(api: client.CustomObjectsApi, refused: Refused) -> None:
    objection = _create(api, refused.resource)
    assert refused.field in objection
    assert refused.words in objection


@pytest.mark.parametrize(
    "resource",
    [_pitch_tracker(), _sentence_encoder(), _fixed(), _two_mounts(), _pulling(), _sites(), _route_table(), _profile()],
    ids=[
        "pitch tracker",
        "sentence encoder",
        "fixed split",
        "two mounts",
        "private image",
        "sites",
        "route table",
        "profile",
    ],
)
def test_sensible_resource_is_accepted(api: client.CustomObjectsApi, resource: Object) -> None:
    assert _create(api, resource) == ""


@pytest.mark.parametrize(
    ("before", "after", "field", "words"),
    [
        (_sites(), {"topologyKey": "rack"}, "spec.sites.topologyKey", "cannot be changed"),
        (_sites(), {"sharedTier": "cloud"}, "spec.sites.sharedTier", "cannot be changed"),
        (_sharing(), {"sharedTier": None}, "spec.sites.sharedTier", "cannot be changed"),
        (_sites(), None, "spec.sites", "can be neither added nor taken away"),
        (_with(_sites(), sites=None), {"topologyKey": "rack"}, "spec.sites", "can be neither added nor taken away"),
        (_sites(), {"topologyKey": "topology.kubernetes.io/zone"}, "", ""),
    ],
    ids=["another label", "shared from now on", "shared no more", "taken away", "added", "left as they are"],
)
def test_what_serves_is_not_torn_down_by_a_change_of_sites(
    api: client.CustomObjectsApi, before: Object, after: Object | None, field: str, words: str
) -> None:
    place = ("splitplane.dev", "v1alpha1", "default", "inferencepipelines")
    api.create_namespaced_custom_object(*place, before)
    try:
        api.patch_namespaced_custom_object(*place, "pitch", {"spec": {"sites": after}}, dry_run="All")
    except client.ApiException as error:
        message = str(json.loads(error.body or "{}")["message"])
    else:
        message = ""
    finally:
        api.delete_namespaced_custom_object(*place, "pitch")
    assert field in message
    assert words in message
    assert bool(message) == bool(words)


def test_least_pipeline_gets_its_defaults(api: client.CustomObjectsApi) -> None:
    least: Object = {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "InferencePipeline",
        "metadata": {"name": "least"},
        "spec": {
            "model": {key: _pitch_tracker()["spec"]["model"][key] for key in ("factory", "weights", "inputs")},
            "tiers": [{"name": "edge", "nodeSelector": {"a": "b"}, "deviceClass": "edge", "replicas": {"max": 1}}],
            "gateway": {"tier": "edge"},
        },
    }
    made: Any = api.create_namespaced_custom_object(
        "splitplane.dev", "v1alpha1", "default", "inferencepipelines", least, dry_run="All"
    )
    assert made["status"] == {"observedGeneration": -1}
    assert made["spec"]["partitioning"] == {"mode": "Auto", "maxPartitions": 2, "codecs": ["fp32"]}
    assert made["spec"]["objectives"] == {"prefer": "Cost", "rawInputStaysTrusted": False}
    assert made["spec"]["replanning"]["intervalSeconds"] == 60
    assert made["spec"]["tiers"][0]["replicas"] == {"min": 0, "max": 1}
    assert made["spec"]["tiers"][0]["trusted"] is False
