"""One coherent snapshot of a pipeline for the planner, from the indexed cluster and the latest metrics. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from splitplane.adapters.metrics import MetricsSnapshot, PipelineMetrics
from splitplane.api.pipelines import InferencePipeline, TierSpec
from splitplane.api.policies import to_tier
from splitplane.api.routes import LinkEstimate
from splitplane.controller.capacity import Capacity, Placement, amounts, capacity, matches, replica_price
from splitplane.controller.control import Control
from splitplane.controller.objects import (
    COMPONENT_LABEL,
    PIPELINE_LABEL,
    TIER_LABEL,
    Key,
    Object,
    labels_of,
)
from splitplane.controller.pods import requests
from splitplane.domain.measurements import MOST_SCV, Idle, Measurement, Missing, Value, known
from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Active, Link, Snapshot, Tier
from splitplane.planner.learning import Correction


@dataclass(frozen=True, slots=True)
class TierState:
    """A tier as the user wrote it, and what the cluster has of it now."""

    spec: TierSpec
    capacity: Capacity
    price: Measurement

    @property
    def tier(self) -> Tier:
        return to_tier(
            self.spec, price_per_hour=self.price, slots=self.capacity.slots, ready_nodes=len(self.capacity.ready)
        )


def placement_of(tier: TierSpec) -> Placement:
    return Placement(
        node_selector=tier.node_selector,
        tolerations=[toleration.dump() for toleration in tier.tolerations],
        requests=amounts(requests(tier)),
    )


def tier_states(
    pipeline: InferencePipeline, *,
    nodes: Sequence[Object], pods_by_node: Mapping[str, Sequence[Object]], metrics: MetricsSnapshot,
    owners: Mapping[str, Key],
) -> dict[str, TierState]:  # fmt: skip
    """Capacity and price of each tier of the pipeline, by name. ``owners`` names whose stages run on a tier, where they
    are another pipeline's."""
    own = pipeline.metadata.namespace, pipeline.metadata.name
    found = {}
    for tier in pipeline.spec.tiers:
        placement = placement_of(tier)
        key = owners.get(tier.name, own)
        is_own = partial(is_stage_pod, pipeline=key, tier=tier.name)
        held = capacity(nodes, pods_by_node, placement, is_own=is_own)
        ready = set(held.ready)
        priced = [node for node in nodes if node["metadata"]["name"] in ready] or [
            node for node in nodes if matches(node, placement.node_selector)
        ]
        price = replica_price(
            priced,
            metrics.node_prices,
            placement.requests,
            otherwise=None if tier.price_per_hour is None else float(tier.price_per_hour),
            failure=metrics.failure,
        )
        found[tier.name] = TierState(tier, held, price)
    return found


def is_stage_pod(pod: Object, pipeline: Key, tier: str) -> bool:
    labels = labels_of(pod)
    return (
        pod["metadata"].get("namespace", "") == pipeline[0]
        and labels.get(PIPELINE_LABEL) == pipeline[1]
        and labels.get(COMPONENT_LABEL) == "stage"
        and labels.get(TIER_LABEL) == tier
    )


def links(tiers: Sequence[str], measured: PipelineMetrics, reported: Sequence[LinkEstimate]) -> tuple[Link, ...]:
    """Every direction between two tiers that somebody measures.

    Before Prometheus has scraped a new gateway, what that gateway itself reports (in its RouteTable's status) stands
    in, so that the first plan need not wait for a scrape.
    """
    live = {(estimate.source, estimate.target): estimate for estimate in reported}
    found = []
    for source in tiers:
        for target in tiers:
            ends = source, target
            if source == target or not (ends in measured.bandwidth or ends in measured.delay or ends in live):
                continue
            bandwidth = measured.bandwidth.get(ends, Missing("no series"))
            delay = measured.delay.get(ends, Missing("no series"))
            estimate = live.get(ends)
            if isinstance(bandwidth, Missing) and estimate and estimate.bandwidth_bytes_per_second is not None:
                bandwidth = Value(float(estimate.bandwidth_bytes_per_second))
            if isinstance(delay, Missing) and estimate and estimate.delay_microseconds is not None:
                delay = Value(estimate.delay_microseconds / 1e6)
            found.append(Link(source, target, bandwidth, delay, measured.recent.get(ends, ())))
    return tuple(found)


def snapshot(
    pipeline: InferencePipeline, *, profile: Profile, profile_name: str, tiers: Mapping[str, TierState],
    metrics: MetricsSnapshot, reported: Sequence[LinkEstimate], control: Control, generation: int, now: float,
    granted: Mapping[str, int], corrections: Mapping[str, Correction],
) -> Snapshot:  # fmt: skip
    """Everything that the planner may look at. ``granted`` holds replicas by tier, where pipelines share nodes,
    ``corrections`` what was learnt of the tiers' speed.

    A plan made for another model than the pipeline now has is left out: its cuts mean nothing any more.
    """
    key = pipeline.metadata.namespace, pipeline.metadata.name
    measured = metrics.of(key)
    active = None
    if control.active is not None and control.active.model == profile_name:
        active = Active(
            plan=control.active.plan,
            generation=generation,
            since=control.since,
            last_switch_seconds=control.last_switch_seconds,
            low_demand_since=control.low_demand_since,
            inputs=control.active.inputs,
            left=control.active.left,
        )
    scv = known(measured.arrival_scv) if not isinstance(measured.arrival_scv, Idle) else None
    return Snapshot(
        pipeline="/".join(key),
        time=now,
        profile=profile,
        tiers=tuple(replace(state.tier, granted=granted.get(name)) for name, state in tiers.items()),
        links=links(list(tiers), measured, reported),
        arrival_rate=measured.arrival_rate,
        arrival_scv=1.0 if scv is None else min(MOST_SCV, max(0.0, scv)),
        speed_corrections={tier: correction.factor(now) for tier, correction in corrections.items()},
        offset_corrections={tier: correction.offset(now) for tier, correction in corrections.items()},
        active=active,
        # The plan that serves can serve, though a change of its pods may have failed.
        set_aside=control.aside_now(pipeline.metadata.generation, now) - {active.plan.digest if active else ""},
    )
