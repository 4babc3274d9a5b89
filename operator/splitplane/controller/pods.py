"""Pod templates that all children share: environment, security, weights, placement. Pure."""

import json
from collections.abc import Mapping, Sequence

from splitplane.api.gateways import GatewaySpec
from splitplane.api.models import ModelSpec
from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.controller.naming import image_of, peers_name
from splitplane.controller.objects import APP, COMPONENT_LABEL, NAME_LABEL, PIPELINE_LABEL, Object
from splitplane.controller.settings import Settings
from splitplane.domain.leaving import UNLISTED_SECONDS
from splitplane.domain.quantities import parse_quantity

HTTP_PORT = 8080
GRPC_PORT = 9000
HTTPS_PORT = 8443
"""A gateway's REST port where clients must show a certificate."""
WEIGHTS_PATH = "/weights"
SCRATCH_PATH = "/tmp"  # noqa: S108 - inside a container, on a volume of its own
_WEIGHTS_VOLUME = "splitplane-weights"
_CACHE_VOLUME, _CACHE_PATH = "splitplane-weights-cache", f"{WEIGHTS_PATH}/.cache"
_SECRET_VOLUME, _SECRET_PATH = "splitplane-weights-secret", f"{WEIGHTS_PATH}/.credentials"
"""No claim has such a name, so neither path meets that of a ``pvc://``."""
CALIBRATION_PATH, _CALIBRATION_VOLUME = "/calibration", "splitplane-calibration"
_SCRATCH_VOLUME = "splitplane-scratch"

TLS_PATH = "/var/run/splitplane/tls"
_TLS_VOLUME = "splitplane-tls"
_CLIENTS_PATH = "/var/run/splitplane/client"

_DOWNLOAD_SECONDS = 3 * 3600
"""What a job may take to download weights; one that gets no further ends by itself (``model.caching``)."""
_STARTUP_SECONDS = 600
"""How long a server may take until its event loop answers; loading a model comes after that, without a bound here."""
_STUCK_SECONDS, _STUCK_LOOKS = 120, 6
"""How long, and for how many looks in a row, a loop may stay without an answer: short of CPU it is slow, not stuck."""


def labels(pipeline: str, component: str, **more: str) -> dict[str, str]:
    return {NAME_LABEL: APP, COMPONENT_LABEL: component, PIPELINE_LABEL: pipeline, **more}


def owner(pipeline: InferencePipeline, *, controller: bool = True) -> Object:
    """Owner reference to a pipeline, so that what was made for it goes with it, the operator running or not."""
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "InferencePipeline",
        "name": pipeline.metadata.name,
        "uid": pipeline.metadata.uid,
        "controller": controller,
    }


def environment(pipeline: str, tier: str, **more: str) -> list[Object]:
    """The variables of docs/architecture.md that every pod of a pipeline gets."""
    fields = {
        "SPLITPLANE_NAMESPACE": "metadata.namespace",
        "SPLITPLANE_POD_NAME": "metadata.name",
        "SPLITPLANE_POD_IP": "status.podIP",
        "SPLITPLANE_NODE_NAME": "spec.nodeName",
    }
    downward: list[Object] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()
    ]
    plain = {"SPLITPLANE_PIPELINE": pipeline, "SPLITPLANE_TIER": tier, "TMPDIR": SCRATCH_PATH, **more}
    return downward + [{"name": name, "value": value} for name, value in plain.items()]


def serving_variables(pipeline: InferencePipeline, settings: Settings) -> list[Object]:
    """Of a gateway and of a stage: whose stages serve the pipeline's requests beside its own, and where spans go."""
    values: dict[str, str] = {}
    if (peers := peers_name(pipeline)) != pipeline.metadata.name:
        values["SPLITPLANE_PEERS"] = peers
    if settings.tracing_endpoint:  # OpenTelemetry's own
        values["OTEL_EXPORTER_OTLP_ENDPOINT"] = settings.tracing_endpoint
        values["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
        values["OTEL_TRACES_SAMPLER_ARG"] = settings.tracing_ratio
    return [{"name": name, "value": value} for name, value in values.items()]


def model_environment(name: str, model: ModelSpec) -> str:
    """``SPLITPLANE_MODEL``: the model as stages and profile jobs load it."""
    uri = model.weights.uri
    if uri.startswith("pvc://"):
        uri = f"file://{WEIGHTS_PATH}/{uri.removeprefix('pvc://')}"
    return json.dumps(
        {
            "name": name,
            "factory": model.factory,
            "weights": {"uri": uri, "sha256": model.weights.sha256},
            "inputs": [tensor.dump() for tensor in model.inputs],
        },
        sort_keys=True,
    )


def model_volumes(model: ModelSpec, tier: TierSpec) -> tuple[list[Object], list[Object]]:
    """Volumes and mounts of a pod that holds the model: the user's, those of the weights, and scratch space."""
    volumes = [volume.dump() for volume in model.volumes]
    mounts = [mount.dump() for mount in model.volume_mounts]
    if model.weights.uri.startswith("pvc://"):
        claim = model.weights.uri.removeprefix("pvc://").partition("/")[0]
        source = {"claimName": claim, "readOnly": True}
        volumes.append({"name": _WEIGHTS_VOLUME, "persistentVolumeClaim": source})
        mounts.append({"name": _WEIGHTS_VOLUME, "mountPath": f"{WEIGHTS_PATH}/{claim}", "readOnly": True})
    if _caches(model, tier):
        assert tier.weights_cache is not None
        volumes.append({"name": _CACHE_VOLUME, "persistentVolumeClaim": tier.weights_cache.dump()})
        mounts.append({"name": _CACHE_VOLUME, "mountPath": _CACHE_PATH})
    if model.weights.secret_ref is not None:
        volumes.append({"name": _SECRET_VOLUME, "secret": {"secretName": model.weights.secret_ref.name}})
        mounts.append({"name": _SECRET_VOLUME, "mountPath": _SECRET_PATH, "readOnly": True})
    return [*volumes, *_scratch_volume()], [*mounts, *_scratch_mount()]


def calibration_volumes(model: ModelSpec) -> tuple[list[Object], list[Object]]:
    """Volume and mount of the claim that real inputs lie on; none where they lie in the image or a user's volume."""
    uri = "" if model.calibration is None else model.calibration.uri
    if not uri.startswith("pvc://"):
        return [], []
    claim = uri.removeprefix("pvc://").partition("/")[0]
    source = {"claimName": claim, "readOnly": True}
    mount: Object = {"name": _CALIBRATION_VOLUME, "mountPath": f"{CALIBRATION_PATH}/{claim}", "readOnly": True}
    return [{"name": _CALIBRATION_VOLUME, "persistentVolumeClaim": source}], [mount]


def weights_variables(model: ModelSpec, tier: TierSpec) -> dict[str, str]:
    """Where a pod that downloads its weights keeps them, and finds its credentials."""
    found: dict[str, str] = {}
    if is_downloaded(model):
        found["SPLITPLANE_WEIGHTS_CACHE"] = _CACHE_PATH if _caches(model, tier) else f"{SCRATCH_PATH}/weights"
    if model.weights.secret_ref is not None:
        found["SPLITPLANE_WEIGHTS_CREDENTIALS"] = _SECRET_PATH
    return found


def most_seconds(model: ModelSpec, settings: Settings) -> int:
    """After which a job that measures a model is stopped. A download that gets on is not held against it."""
    return settings.profile_deadline + (_DOWNLOAD_SECONDS if is_downloaded(model) else 0)


def is_downloaded(model: ModelSpec) -> bool:
    """Whether each pod fetches the weights itself."""
    return not model.weights.uri.startswith(("pvc://", "file://"))


def _caches(model: ModelSpec, tier: TierSpec) -> bool:
    return is_downloaded(model) and tier.weights_cache is not None


def _scratch_volume() -> list[Object]:
    return [{"name": _SCRATCH_VOLUME, "emptyDir": {}}]


def _scratch_mount() -> list[Object]:
    return [{"name": _SCRATCH_VOLUME, "mountPath": SCRATCH_PATH}]


def resources(owner_of_resources: TierSpec | GatewaySpec) -> Object:
    return owner_of_resources.resources.dump()


def requests(tier: TierSpec) -> dict[str, str]:
    """What a replica asks of the scheduler: its requests; a limit without a request is one, as Kubernetes has it."""
    return {**(tier.resources.limits or {}), **(tier.resources.requests or {})}


def compute_threads(tier: TierSpec) -> int:
    """Threads that a model's pod computes with: the whole cores that its CPU limit lets it have.

    Without a limit it is one, so that replicas that share a node do not slow each other by more threads than cores.
    """
    limit = (tier.resources.limits or {}).get("cpu")
    return 1 if limit is None else max(1, int(parse_quantity(limit)))


def placement(tier: TierSpec) -> Object:
    """Where pods of a tier may go: its nodes (see :func:`spread` for which of them)."""
    found: Object = {"nodeSelector": dict(tier.node_selector)}
    if tier.tolerations:
        found["tolerations"] = [toleration.dump() for toleration in tier.tolerations]
    return found


def spread(match: Mapping[str, str]) -> list[Object]:
    """Replicas on different nodes where there are enough, so that one node's end does not end a stage."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(match)},
        }
    ]


def server(
    name: str, image: str, module: str, env: Sequence[Object], *, resources: Object, look_seconds: int = 2
) -> Object:
    """A container that serves on the standard ports: ready when it says so, gone only after it is unlisted.

    Its event loop answers for its life: a container whose loop is stuck is restarted, one that only computes is not.
    """
    live = {"httpGet": {"path": "/v2/health/live", "port": HTTP_PORT}, "timeoutSeconds": 10}
    return {
        "name": name,
        "image": image,
        "args": ["python", "-m", module],
        "env": list(env),
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
        ],
        "resources": resources,
        # Imports alone take minutes where a container gets a few hundredths of a core.
        "startupProbe": {**live, "periodSeconds": look_seconds, "failureThreshold": _STARTUP_SECONDS // look_seconds},
        "livenessProbe": {
            **live,
            "periodSeconds": _STUCK_SECONDS // _STUCK_LOOKS,
            "failureThreshold": _STUCK_LOOKS,
            # A loop that is stuck hears no SIGTERM and drains nothing.
            "terminationGracePeriodSeconds": 10,
        },
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": HTTP_PORT},
            "periodSeconds": look_seconds,
            "timeoutSeconds": 2,
            "failureThreshold": 6 // look_seconds,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": UNLISTED_SECONDS}}},
        **container_safety(),
    }


def container_safety() -> Object:
    """What Pod Security's level ``restricted`` asks of a container, and the last words of one that fails."""
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def model_pod_safety(model: ModelSpec, tier: TierSpec, user: int | None) -> Object:
    """:func:`pod_safety`, and the right to write into the tier's cache of weights."""
    # A claim's files belong to root unless a group is named; looking through all of them at each start is left out.
    cached = _caches(model, tier)
    group = {"fsGroup": user} if cached and user is not None else {}  # a platform that gives users gives this, too
    return pod_safety(user) | group | ({"fsGroupChangePolicy": "OnRootMismatch"} if cached else {})


def pod_safety(user: int | None) -> Object:
    """What Pod Security's level ``restricted`` asks of a pod, and a user and group that own nothing."""
    # A kubelet takes the image's user but not its group: without both here, a pod's group is root's.
    own = {} if user is None else {"runAsUser": user, "runAsGroup": user}
    return {"runAsNonRoot": True, **own, "seccompProfile": {"type": "RuntimeDefault"}}


def scrape_annotations() -> dict[str, str]:
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(HTTP_PORT)}


def model_pod(
    pipeline: InferencePipeline, tier: TierSpec, settings: Settings
) -> tuple[str, list[Object], list[Object], Object]:
    """Image, volumes, mounts and pull settings of pods that hold the pipeline's model."""
    model = pipeline.spec.model
    volumes, mounts = model_volumes(model, tier)
    given = [secret.name for secret in model.image_pull_secrets]
    pull = pulled_with(given or ([] if model.image else settings.pull_secrets))
    return image_of(model, settings.runtime_image), volumes, mounts, pull


def pulled_with(secrets: Sequence[str]) -> Object:
    """A pod's Secrets for its images' registries. Kubelets take it as no error when one does not exist."""
    return {"imagePullSecrets": [{"name": name} for name in secrets]} if secrets else {}


def gateway_volumes() -> tuple[list[Object], list[Object]]:
    """Volumes and mounts of a gateway: scratch space and the folder that keeps the last route table."""
    state: Object = {"name": "splitplane-state", "emptyDir": {}}
    mount: Object = {"name": "splitplane-state", "mountPath": GATEWAY_STATE_PATH}
    return [state, *_scratch_volume()], [mount, *_scratch_mount()]


def tls_secret(pipeline: str, role: str) -> str:
    """Name of the Secret with the certificate of a pipeline's gateway or stages."""
    return f"{pipeline}-{role}-tls"


def tls(pipeline: str, role: str) -> tuple[Object, Object, Object]:
    """Volume, mount and variable by which a server finds its certificate."""
    volume: Object = {"name": _TLS_VOLUME, "secret": {"secretName": tls_secret(pipeline, role)}}
    mount: Object = {"name": _TLS_VOLUME, "mountPath": TLS_PATH, "readOnly": True}
    return volume, mount, {"name": "SPLITPLANE_TLS_DIR", "value": TLS_PATH}


def client_auth(gateway: GatewaySpec) -> tuple[list[Object], list[Object], list[Object]]:
    """Volumes, mounts and variables by which a gateway finds what its clients must show."""
    asked = gateway.client_auth
    volumes: list[Object] = []
    mounts: list[Object] = []
    variables: list[Object] = []
    if asked is None:
        return volumes, mounts, variables
    for name, reference in (("tokens", asked.bearer_tokens), ("tls", asked.certificates)):
        if reference is not None:
            volume, path = f"splitplane-client-{name}", f"{_CLIENTS_PATH}-{name}"
            volumes.append({"name": volume, "secret": {"secretName": reference.name}})
            mounts.append({"name": volume, "mountPath": path, "readOnly": True})
            variables.append({"name": f"SPLITPLANE_CLIENT_{name.upper()}_DIR", "value": path})
    return volumes, mounts, variables


GATEWAY_STATE_PATH = "/var/lib/splitplane"
