"""From resources to the planner's values, and from plans back to resources."""

from collections.abc import Callable, Sequence

from splitplane.api.fields import LARGEST, decimal_or_none
from splitplane.api.pipelines import InferencePipelineSpec, TierSpec
from splitplane.api.statuses import MOST_PERCENT, PlanStatus
from splitplane.domain.measurements import Measurement, Missing, Value
from splitplane.domain.plans import Plan, Prediction, Stage
from splitplane.domain.quantities import parse_quantity
from splitplane.domain.snapshots import FixedPlan, Mode, Policy, Preference, Tier


def to_policy(spec: InferencePipelineSpec) -> Policy:
    """The user's limits and rules, in seconds and fractions."""
    objectives, partitioning, replanning = spec.objectives, spec.partitioning, spec.replanning
    fixed = partitioning.fixed
    limit = objectives.latency_p95_milliseconds
    return Policy(
        max_p95_seconds=None if limit is None else limit / 1000,
        max_cost_per_hour=None if objectives.max_cost_per_hour is None else float(objectives.max_cost_per_hour),
        max_leak=None if objectives.max_leakage is None else float(objectives.max_leakage),
        max_accuracy_loss=None if objectives.max_accuracy_loss is None else float(objectives.max_accuracy_loss),
        raw_input_stays_trusted=objectives.raw_input_stays_trusted,
        prefer=Preference(objectives.prefer),
        mode=Mode(partitioning.mode),
        fixed=None
        if fixed is None
        else FixedPlan(
            stages=tuple((stage.tier, stage.first_cut, stage.last_cut) for stage in fixed.stages),
            codecs=tuple(fixed.codecs),
        ),
        codecs=tuple(partitioning.codecs),
        max_partitions=partitioning.max_partitions,
        max_utilization=replanning.max_utilization_percent / 100,
        min_gain=replanning.min_gain_percent / 100,
        cooldown_seconds=replanning.cooldown_seconds,
        scale_down_window_seconds=replanning.scale_down_window_seconds,
        gateway_tier=spec.gateway.tier,
        max_batch=spec.batching.max_size,
    )


def spec_price(tier: TierSpec) -> Measurement:
    """The price of a replica-hour that the user wrote down, for when Prometheus has none."""
    if tier.price_per_hour is None:
        return Missing(f"tier {tier.name} has no pricePerHour, and no node_total_hourly_cost was found")
    return Value(float(tier.price_per_hour))


def to_tier(tier: TierSpec, *, price_per_hour: Measurement, slots: int, ready_nodes: int) -> Tier:
    """A tier with what the cluster has of it now; ``price_per_hour`` is the price of one replica-hour."""
    memory = (tier.resources.limits or {}).get("memory")
    return Tier(
        name=tier.name,
        device_class=tier.device_class,
        trusted=tier.trusted,
        min_replicas=tier.replicas.min,
        max_replicas=tier.replicas.max,
        price_per_hour=price_per_hour,
        egress_price_per_gib=float(tier.egress_price_per_gib),
        memory_limit_bytes=None if memory is None else int(parse_quantity(memory)),
        slots=slots,
        ready_nodes=ready_nodes,
    )


def from_plan(
    plan: Plan,
    *,
    generation: int,
    cut_names: Sequence[str] = (),
    deployment: Callable[[Stage], str] | None = None,
) -> PlanStatus:
    """A plan's place in the status, still without numbers (see :func:`from_prediction`).

    ``cut_names[i]`` is the name of cut ``i``, ``deployment`` names a stage's pods.
    """
    return PlanStatus.model_validate(
        {
            "summary": str(plan),
            "generation": generation,
            "stages": [
                {
                    "tier": stage.tier,
                    "firstCut": stage.first,
                    "lastCut": stage.last,
                    "cutName": cut_names[stage.first] if stage.first < len(cut_names) else "",
                    "residentFirst": stage.resident_first,
                    "residentLast": stage.resident_last,
                    "replicas": stage.replicas,
                    "deployment": None if deployment is None else deployment(stage),
                }
                for stage in plan.stages
            ],
            "codecs": list(plan.codecs),
        }
    )


def from_shares(predicted: Prediction) -> dict[str, str | None]:
    """A prediction's leak and loss of accuracy as the status shows them; what was not measured is ``None``."""
    shares = {"leakage": predicted.leak, "accuracyLoss": predicted.accuracy_loss}
    return {name: None if share is None else decimal_or_none(share, digits=4) for name, share in shares.items()}


def from_prediction(predicted: Prediction) -> dict[str, int | str | None]:
    """A prediction as the status shows it. What is not finite is ``None``: a merge patch removes the old number."""
    milliseconds = predicted.p95_seconds * 1000
    return {
        "predictedP95Milliseconds": round(milliseconds) if milliseconds < LARGEST else None,
        "costPerHour": decimal_or_none(predicted.cost_per_hour, digits=4),
        "maxRatePerSecond": decimal_or_none(predicted.max_rate_per_second, digits=2),
    }


def percent(fraction: float) -> int | None:
    """A gain in whole per cent; ``None`` where it is no number that the status can hold."""
    return round(fraction * 100) if abs(fraction) < MOST_PERCENT / 100 else None
