"""Pydantic models of the custom resources: the one source of ``crds/*.yaml``, and their way to and from the domain."""

from splitplane.api.fields import API_VERSION, GROUP, VERSION, Condition, decimal_string
from splitplane.api.pipelines import InferencePipeline, InferencePipelineSpec, TierSpec
from splitplane.api.policies import from_plan, from_prediction, spec_price, to_policy, to_tier
from splitplane.api.profiles import ModelProfile, ModelProfileSpec, from_device, from_profile, to_device, to_profile
from splitplane.api.routes import RouteTable, RouteTableSpec, RouteTableStatus
from splitplane.api.statuses import (
    DecisionStatus,
    Drain,
    PendingSwitch,
    PipelineStatus,
    PlanStatus,
    Recommendation,
    SetAside,
    StageStatus,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "Condition",
    "DecisionStatus",
    "Drain",
    "InferencePipeline",
    "InferencePipelineSpec",
    "ModelProfile",
    "ModelProfileSpec",
    "PendingSwitch",
    "PipelineStatus",
    "PlanStatus",
    "Recommendation",
    "RouteTable",
    "RouteTableSpec",
    "RouteTableStatus",
    "SetAside",
    "StageStatus",
    "TierSpec",
    "decimal_string",
    "from_device",
    "from_plan",
    "from_prediction",
    "from_profile",
    "spec_price",
    "to_device",
    "to_policy",
    "to_profile",
    "to_tier",
]
