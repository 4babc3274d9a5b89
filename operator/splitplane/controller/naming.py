"""Deterministic names and digests: what is the same gets the same name, after a restart and by a second operator."""

import hashlib
import json
import re
from typing import Any

from splitplane.api.models import ModelSpec
from splitplane.api.pipelines import InferencePipeline, InferencePipelineSpec, TierSpec
from splitplane.controller.objects import COMPONENT_LABEL, PIPELINE_LABEL, SHARED_LABEL, SITE


def digest(value: Any, *, length: int = 8) -> str:
    """Hexadecimal digits of anything that has a JSON form; equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def image_of(model: ModelSpec, default: str) -> str:
    return model.image or default


def profile_name(spec: InferencePipelineSpec, default_image: str) -> str:
    """Name of the ``ModelProfile``: pipelines of a namespace whose model is made and fed alike share it.

    Two runs of one factory from one image and the same mounted files, with one weights file, give one fingerprint, so
    this identity is enough to find a profile before anything has run. What a mounted object holds is not looked at: a
    stage that finds other code than was profiled (another graph, or of a model that is served whole, other source
    files) has another fingerprint, and refuses to start.
    """
    model, defence = spec.model, spec.objectives.defence
    slug = re.sub(r"[^a-z0-9]+", "-", model.factory.lower()).strip("-")[:40].strip("-")
    identity: dict[str, Any] = {
        "factory": model.factory,
        "image": image_of(model, default_image),
        "weights": model.weights.sha256,
        "inputs": [tensor.dump() for tensor in model.inputs],
        "env": [variable.dump() for variable in model.env],
        "mounts": sorted(_mounted(model), key=lambda mount: str(mount["path"])),
    }
    if defence is not None:  # accuracy loss and leak are measured with it
        identity["defence"] = defence.dump()
    if model.calibration is not None and model.calibration.metric is not None:  # accuracy loss is measured by it
        identity["metric"] = model.calibration.metric
    return f"{slug}-{digest(identity)}"


def _mounted(model: ModelSpec) -> list[dict[str, Any]]:
    """What lies where in the model's pods, whatever the volumes are called."""
    sources = {volume.name: volume.dump() for volume in model.volumes}
    for source in sources.values():
        del source["name"]
    return [
        {"path": mount.mount_path, "subPath": mount.sub_path, "source": sources.get(mount.name)}
        for mount in model.volume_mounts
    ]


def model_name(pipeline: InferencePipeline) -> str:
    """What clients call the model: the user's pipeline, at each of its sites."""
    at_site = pipeline.metadata.labels.get(COMPONENT_LABEL) == SITE
    return pipeline.metadata.labels.get(PIPELINE_LABEL, "") if at_site else pipeline.metadata.name


def shared_tier(pipeline: InferencePipeline) -> str:
    """The tier on which a site's pipeline uses the replicas of the user's; empty where there is none."""
    at_site = pipeline.metadata.labels.get(COMPONENT_LABEL) == SITE
    return pipeline.metadata.labels.get(SHARED_LABEL, "") if at_site else ""


def peers_name(pipeline: InferencePipeline) -> str:
    """Whose pods a pipeline's pods talk to, by the name in their certificates: sites that share replicas are one."""
    return pipeline.metadata.labels[PIPELINE_LABEL] if shared_tier(pipeline) else pipeline.metadata.name


def gateway_name(pipeline: str) -> str:
    return f"{pipeline}-gateway"


def stages_name(pipeline: str) -> str:
    """Name of what all stages of a pipeline have in common."""
    return f"{pipeline}-stages"


def stage_name(pipeline: str, tier: str, template: Any) -> str:
    """Name of a stage's Deployment: covers everything in the pod template, so not the number of replicas."""
    return f"{pipeline}-{tier}-{digest(template)}"


def profile_job_name(pipeline: str, tier: TierSpec, profile: str, template: Any) -> str:
    return f"{pipeline}-profile-{tier.name}-{digest([profile, template])}"


def calibration_job_name(pipeline: str, tier: TierSpec, profile: str, asked: Any, template: Any) -> str:
    """``asked`` is what is measured, and of what: with anything else, a result at hand is no answer any more."""
    return f"{pipeline}-measure-{tier.name}-{digest([profile, asked, template])}"


def tier_of(spec: InferencePipelineSpec, name: str) -> TierSpec:
    """The tier called ``name``. Raises ``KeyError`` when the spec has none."""
    for tier in spec.tiers:
        if tier.name == name:
            return tier
    raise KeyError(name)
