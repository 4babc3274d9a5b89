"""The Kubernetes objects that a pipeline is made of, as pure functions of the pipeline. Golden tests pin them."""

import json
import math
from dataclasses import dataclass
from typing import Any

from splitplane.api.defences import to_defence
from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.controller.disruptions import gateway_budget
from splitplane.controller.naming import (
    digest,
    gateway_name,
    model_name,
    stage_name,
    tier_of,
)
from splitplane.controller.objects import STAGE_LABEL, TIER_LABEL, Object
from splitplane.controller.pods import (
    GATEWAY_STATE_PATH,
    GRPC_PORT,
    HTTP_PORT,
    HTTPS_PORT,
    calibration_volumes,
    client_auth,
    compute_threads,
    container_safety,
    environment,
    gateway_volumes,
    labels,
    model_environment,
    model_pod,
    model_pod_safety,
    most_seconds,
    owner,
    placement,
    pod_safety,
    pulled_with,
    scrape_annotations,
    server,
    serving_variables,
    spread,
    tls,
    weights_variables,
)
from splitplane.controller.settings import OFF, Settings
from splitplane.domain.calibrations import CalibrationRequest
from splitplane.domain.leaving import GRACE_SECONDS

DESIRED_ANNOTATION = "splitplane.dev/desired"
"""Digest of the object as it was applied last: what has not changed is not sent again."""

ATTEMPT_ANNOTATION = "splitplane.dev/attempt"
PROFILE_LABEL = "splitplane.dev/profile"
DEVICE_CLASS_LABEL = "splitplane.dev/device-class"


@dataclass(frozen=True, slots=True)
class StageKey:
    """What tells two stage Deployments of one pipeline apart: tier, resident range and model fingerprint."""

    tier: str
    resident_first: int
    resident_last: int
    fingerprint: str


def finished(body: Object) -> Object:
    """``body`` with the digest of itself among its annotations."""
    metadata = body["metadata"]
    annotations = {**metadata.get("annotations", {}), DESIRED_ANNOTATION: digest(body, length=16)}
    return {**body, "metadata": {**metadata, "annotations": annotations}}


def stage_deployment(pipeline: InferencePipeline, key: StageKey, *, replicas: int, settings: Settings) -> Object:
    """Deployment of one partition. Its name covers the pod template: another template is another stage.

    Raises ``KeyError`` when the pipeline no longer has the tier.
    """
    name = pipeline.metadata.name
    tier = tier_of(pipeline.spec, key.tier)
    template = _stage_template(pipeline, key, tier, settings)
    deployment = stage_name(name, tier.name, template)
    more = {STAGE_LABEL: deployment, TIER_LABEL: tier.name}
    match = {STAGE_LABEL: deployment}
    template["metadata"]["labels"] = labels(name, "stage", **more)
    template["spec"]["topologySpreadConstraints"] = spread(match)
    return finished(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata_of(pipeline, deployment, "stage", **more),
            "spec": {
                "replicas": replicas,
                "revisionHistoryLimit": 0,
                "selector": {"matchLabels": match},
                "template": template,
            },
        }
    )


def _stage_template(pipeline: InferencePipeline, key: StageKey, tier: TierSpec, settings: Settings) -> Object:
    image, volumes, mounts, pull = model_pod(pipeline, tier, settings)
    resident = {
        "SPLITPLANE_RESIDENT": f"{key.resident_first}:{key.resident_last}",
        "SPLITPLANE_FINGERPRINT": key.fingerprint,
    }
    if pipeline.spec.objectives.defence is not None:
        defence = to_defence(pipeline.spec.objectives.defence).to_dict()
        untrusted = [each.name for each in pipeline.spec.tiers if not each.trusted]
        resident["SPLITPLANE_DEFENCE"] = json.dumps({**defence, "tiers": untrusted}, sort_keys=True)
    env = [*_model_variables(pipeline, tier, **resident), *serving_variables(pipeline, settings)]
    if settings.mtls != OFF:
        volume, mount, variable = tls(pipeline.metadata.name, "stage")
        env, volumes, mounts = [*env, variable], [*volumes, volume], [*mounts, mount]
    container = server("stage", image, "splitplane.runtime.stage", env, resources=tier.resources.dump())
    container["volumeMounts"] = mounts
    container |= _pull_policy(pipeline)
    return {
        "metadata": {"annotations": scrape_annotations()},
        "spec": {
            "containers": [container],
            "volumes": volumes,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": model_pod_safety(pipeline.spec.model, tier, settings.run_as_user),
            **placement(tier),
            **pull,
        },
    }


def gateway_objects(pipeline: InferencePipeline, settings: Settings) -> list[Object]:
    """ServiceAccount, Role, RoleBinding, Deployment, Service and budget of the gateway, in the order to apply them."""
    name = gateway_name(pipeline.metadata.name)
    match = labels(pipeline.metadata.name, "gateway")
    return [
        *service_account_objects(
            pipeline,
            name,
            "gateway",
            [
                {
                    "apiGroups": ["splitplane.dev"],
                    "resources": ["routetables"],
                    "resourceNames": [pipeline.metadata.name],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["splitplane.dev"],
                    "resources": ["routetables/status"],
                    "resourceNames": [pipeline.metadata.name],
                    "verbs": ["patch"],
                },
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            ],
        ),
        _gateway_deployment(pipeline, settings),
        _gateway_service(pipeline),
        finished(gateway_budget(metadata_of(pipeline, name, "gateway"), match)),
    ]


def service_account_objects(
    pipeline: InferencePipeline, name: str, component: str, rules: list[dict[str, Any]]
) -> list[Object]:
    """A ServiceAccount that may do what ``rules`` say in its namespace, and nothing else."""
    metadata = metadata_of(pipeline, name, component)
    return [
        finished({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        finished({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules}),
        finished(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": metadata["namespace"]}],
            }
        ),
    ]


def _gateway_deployment(pipeline: InferencePipeline, settings: Settings) -> Object:
    name = gateway_name(pipeline.metadata.name)
    spec = pipeline.spec
    tier = tier_of(spec, spec.gateway.tier)
    volumes, mounts = gateway_volumes()
    env = environment(
        pipeline.metadata.name,
        tier.name,
        SPLITPLANE_ROUTE_TABLE=pipeline.metadata.name,
        SPLITPLANE_STATE_DIR=GATEWAY_STATE_PATH,
    )
    if spec.gateway.trusted_proxies:
        env.append({"name": "SPLITPLANE_TRUSTED_PROXIES", "value": ",".join(spec.gateway.trusted_proxies)})
    if settings.kserve_metrics:
        env.append({"name": "SPLITPLANE_KSERVE_METRICS", "value": "true"})
    env += serving_variables(pipeline, settings)
    if settings.mtls != OFF:
        volume, mount, variable = tls(pipeline.metadata.name, "gateway")
        env, volumes, mounts = [*env, variable], [*volumes, volume], [*mounts, mount]
    for whole, more in zip((volumes, mounts, env), client_auth(spec.gateway), strict=True):
        whole += more
    container = server(
        "gateway",
        settings.operator_image,
        "splitplane.runtime.gateway",
        env,
        resources=spec.gateway.resources.dump(),
        look_seconds=1,  # it starts in a second, where a stage takes several
    )
    container["volumeMounts"] = mounts
    if _is_https(pipeline):
        container["ports"].append({"name": "https", "containerPort": HTTPS_PORT, "protocol": "TCP"})
    match = labels(pipeline.metadata.name, "gateway")
    return finished(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata_of(pipeline, name, "gateway"),
            "spec": {
                "replicas": spec.gateway.replicas,
                "revisionHistoryLimit": 1,
                "selector": {"matchLabels": match},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {
                    "metadata": {"labels": match, "annotations": scrape_annotations()},
                    "spec": {
                        "serviceAccountName": name,
                        "containers": [container],
                        "volumes": volumes,
                        "enableServiceLinks": False,
                        "terminationGracePeriodSeconds": GRACE_SECONDS,
                        "securityContext": pod_safety(settings.run_as_user),
                        "topologySpreadConstraints": spread(match),
                        **placement(tier),
                        **pulled_with(settings.pull_secrets),
                    },
                },
            },
        }
    )


def _gateway_service(pipeline: InferencePipeline) -> Object:
    name = gateway_name(pipeline.metadata.name)
    ports = {"http": HTTP_PORT, "grpc": GRPC_PORT} | ({"https": HTTPS_PORT} if _is_https(pipeline) else {})
    return finished(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata_of(pipeline, name, "gateway"),
            "spec": {
                "selector": labels(pipeline.metadata.name, "gateway"),
                "ports": [
                    {"name": port, "port": number, "targetPort": port, "protocol": "TCP"}
                    for port, number in ports.items()
                ],
            },
        }
    )


def _is_https(pipeline: InferencePipeline) -> bool:
    asked = pipeline.spec.gateway.client_auth
    return asked is not None and asked.certificates is not None


def profile_objects(
    pipeline: InferencePipeline, tier: TierSpec, *, name: str, profile: str, attempt: int, settings: Settings
) -> list[Object]:
    """ConfigMap for the result, rights to write it and nothing else, and the Job that measures on the tier."""
    more = {TIER_LABEL: tier.name, DEVICE_CLASS_LABEL: tier.device_class, PROFILE_LABEL: profile}
    template = profile_template(pipeline, tier, settings)
    seconds = most_seconds(pipeline.spec.model, settings)
    return _job_objects(pipeline, template, "profile", more, name=name, attempt=attempt, seconds=seconds)


def calibration_objects(
    pipeline: InferencePipeline, tier: TierSpec, request: CalibrationRequest,
    *, name: str, profile: str, attempt: int, settings: Settings,
) -> list[Object]:  # fmt: skip
    """The same for the Job that measures accuracy loss and leak."""
    template = calibration_template(pipeline, tier, settings)
    variable = {"name": "SPLITPLANE_CALIBRATION", "value": json.dumps(request.to_dict(), sort_keys=True)}
    template["spec"]["containers"][0]["env"].append(variable)
    more = {TIER_LABEL: tier.name, PROFILE_LABEL: profile}
    seconds = most_seconds(pipeline.spec.model, settings) + math.ceil(request.seconds)
    return _job_objects(pipeline, template, "calibration", more, name=name, attempt=attempt, seconds=seconds)


def _job_objects(
    pipeline: InferencePipeline, template: Object, component: str, more: dict[str, str],
    *, name: str, attempt: int, seconds: int,
) -> list[Object]:  # fmt: skip
    metadata = metadata_of(pipeline, name, component, **more)
    rights = [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": ["patch"]},
    ]
    template["metadata"] = {"labels": labels(pipeline.metadata.name, component, **more)}
    pod = template["spec"]
    pod["serviceAccountName"] = name
    pod["containers"][0]["env"].append({"name": "SPLITPLANE_RESULT_CONFIGMAP", "value": name})
    job_metadata = {**metadata, "annotations": {ATTEMPT_ANNOTATION: str(attempt)}}
    return [
        # Applied without data: server-side apply leaves alone what the job wrote.
        finished({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}),
        *service_account_objects(pipeline, name, component, rights),
        finished(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": job_metadata,
                "spec": {"backoffLimit": 0, "activeDeadlineSeconds": seconds, "template": template},
            }
        ),
    ]


def profile_template(pipeline: InferencePipeline, tier: TierSpec, settings: Settings) -> Object:
    """Pod of a profile job, but for what its own name decides: the name covers this."""
    variables = {"SPLITPLANE_DEVICE_CLASS": tier.device_class}
    return _job_template(pipeline, tier, settings, "profile", variables)


def calibration_template(pipeline: InferencePipeline, tier: TierSpec, settings: Settings) -> Object:
    """Pod of a calibration job, but for what its own name decides, and what it is asked for."""
    template = _job_template(pipeline, tier, settings, "calibration", {})
    volumes, mounts = calibration_volumes(pipeline.spec.model)
    template["spec"]["volumes"] += volumes
    template["spec"]["containers"][0]["volumeMounts"] += mounts
    return template


def _job_template(
    pipeline: InferencePipeline, tier: TierSpec, settings: Settings, component: str, variables: dict[str, str]
) -> Object:
    image, volumes, mounts, pull = model_pod(pipeline, tier, settings)
    container: Object = {
        "name": component,
        "image": image,
        "args": ["python", "-m", f"splitplane.runtime.{component}_job"],
        "env": _model_variables(pipeline, tier, **variables),
        "resources": tier.resources.dump(),
        "volumeMounts": mounts,
        **container_safety(),
        **_pull_policy(pipeline),
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": volumes,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 10,
            "securityContext": model_pod_safety(pipeline.spec.model, tier, settings.run_as_user),
            **placement(tier),
            **pull,
        }
    }


def _model_variables(pipeline: InferencePipeline, tier: TierSpec, **more: str) -> list[Object]:
    """Variables of a pod that holds the model: the operator's, then the user's, which may refer to them."""
    name, model = pipeline.metadata.name, pipeline.spec.model
    own = environment(
        name,
        tier.name,
        SPLITPLANE_MODEL=model_environment(model_name(pipeline), model),
        SPLITPLANE_THREADS=str(compute_threads(tier)),
        **weights_variables(model, tier),
        **more,
    )
    return own + [variable.dump() for variable in model.env]


def _pull_policy(pipeline: InferencePipeline) -> Object:
    policy = pipeline.spec.model.image_pull_policy
    return {"imagePullPolicy": policy} if policy else {}


def metadata_of(pipeline: InferencePipeline, name: str, component: str, **more: str) -> Object:
    """Of an object that a pipeline owns."""
    return {
        "name": name,
        "namespace": pipeline.metadata.namespace,
        "labels": labels(pipeline.metadata.name, component, **more),
        "ownerReferences": [owner(pipeline)],
    }
