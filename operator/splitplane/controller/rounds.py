"""What one round about one pipeline rests on (``Round``), and what is remembered between rounds (``Memory``)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.profiles import ModelProfileSpec
from splitplane.api.routes import LinkEstimate, RouteTableStatus
from splitplane.controller import control as controls
from splitplane.controller import gateway_reports
from splitplane.controller.announcing import Announcements
from splitplane.controller.conditions import Verdict
from splitplane.controller.control import Control
from splitplane.controller.objects import STAGE_LABEL, Key, Object, is_terminating, key_of, labels_of
from splitplane.controller.profiling import pod_trouble
from splitplane.controller.sharing import Sharing
from splitplane.controller.snapshots import TierState, tier_states
from splitplane.controller.switching import Note, Observed
from splitplane.controller.view import View
from splitplane.domain.estimates import Estimate
from splitplane.domain.profiles import DeviceProfile, Profile
from splitplane.domain.snapshots import Decision, Policy, Snapshot
from splitplane.planner import Kept
from splitplane.planner.learning import Correction


@dataclass(slots=True)
class Memory:
    """What the operator may forget about a pipeline: after a restart it is found out again."""

    uid: str
    planned_at: float = 0.0
    planned_for: object = None
    decision: Decision | None = None
    asked: tuple[Snapshot, Policy] | None = None
    """What the planner was asked last."""
    told: tuple[str, str] = ("", "")
    """Reason and gate of the last decision, as far as the log tells."""
    applied: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    status_at: float = 0.0
    parsed: tuple[str, InferencePipeline] | None = None
    profile: tuple[str, ModelProfileSpec, Profile] | None = None
    kept: Kept | None = None
    """What the planner keeps of the profile."""
    announcements: Announcements = field(default_factory=Announcements)
    corrections: dict[str, Correction] = field(default_factory=dict)
    """By tier, how much slower it is than ``learnt_of`` says: the model's fingerprint and the tier's device."""
    learnt_of: dict[str, tuple[str, DeviceProfile | None]] = field(default_factory=dict)
    surge: int = 0
    """How far the load was above what the plan bears, in steps, when that was looked at last."""
    sites: dict[str, float] = field(default_factory=dict)
    """When a node named each site last; minus infinity once it was taken away."""
    untold: list[Object] = field(default_factory=list)
    """Entries of ``status.decisions`` that no status was written with yet."""
    contradiction: str = ""
    """Why the planner refused spec and snapshot together, as long as it does."""


@dataclass(slots=True)
class Round:
    """What is found out and changed about one pipeline in one round."""

    pipeline: InferencePipeline
    body: Object
    metrics: MetricsSnapshot
    now: float
    tiers: dict[str, TierState]
    table: Object | None
    control: Control
    observed: Observed
    reported: Sequence[LinkEstimate]
    gone_gateways: Sequence[str]
    """Whose reports still stand in the RouteTable's status."""
    decisions: list[Object]
    """What the status lists."""
    entries: list[Object] = field(default_factory=list)
    """What it is to list besides, the latest last."""
    record: Callable[[], None] | None = None
    """Logs what was decided, once that is written."""
    publish: bool = False
    notes: list[Note] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """By device class, what plans count on where the model was not measured."""
    sharing: Sharing | None = None
    """Where this is a site that shares replicas: which."""
    limits: Verdict | None = None
    """Whether what the limits on accuracy loss and leak need was measured; absent where there are none."""

    @property
    def key(self) -> Key:
        return key_of(self.body)


def look(
    view: View, body: Object, pipeline: InferencePipeline, metrics: MetricsSnapshot, *, now: float,
    sharing: Sharing | None = None,
) -> Round:  # fmt: skip
    """Everything that one round about a pipeline rests on.

    Raises ``ValueError`` when the state kept with the RouteTable is unreadable.
    """
    key = key_of(body)
    nodes = view.nodes()
    tiers = tier_states(
        pipeline, nodes=nodes, pods_by_node=view.pods_by_node(nodes), metrics=metrics,
        owners={sharing.tier: sharing.key} if sharing else {},
    )  # fmt: skip
    table = view.route_table(key)
    if table is not None and (is_terminating(table) or not _belongs(table, pipeline)):
        table = None
    status = RouteTableStatus.parse((table or {}).get("status") or {})
    gateways = view.pods_of(key, "gateway")
    report = gateway_reports.merged(gateway_reports.present(status.gateways, gateways, nodes).values())
    pods = [*view.pods_of(key, "stage"), *(view.pods_of(sharing.key, "stage") if sharing else ())]
    troubles: dict[str, str] = {}
    for pod in pods:
        trouble = "" if is_terminating(pod) else pod_trouble(pod)
        if trouble:
            troubles.setdefault(labels_of(pod).get(STAGE_LABEL, ""), trouble)
    observed = Observed(
        generation=_generation(table),
        acknowledged=report.acknowledged_generation,
        ready={stage.name: stage.ready for stage in report.stages},
        in_flight={entry.generation: entry.requests for entry in report.in_flight},
        troubles=troubles,
        slots={name: state.capacity.slots for name, state in tiers.items()},
        lost_tiers=frozenset(name for name, state in tiers.items() if not state.capacity.ready),
    )
    return Round(
        pipeline=pipeline, body=body, metrics=metrics, now=now, tiers=tiers, table=table,
        control=controls.load(table), observed=observed, reported=report.links,
        gone_gateways=gateway_reports.gone(status.gateways, gateways),
        decisions=list((body.get("status") or {}).get("decisions") or ()), sharing=sharing,
    )  # fmt: skip


def parsed(memory: Memory, body: Object) -> InferencePipeline:
    """The pipeline as a model, parsed anew only when its spec changed."""
    version = f"{body['metadata'].get('uid')}/{body['metadata'].get('generation')}"
    if memory.parsed is None or memory.parsed[0] != version:
        stripped = {key: value for key, value in body.items() if key != "status"}
        memory.parsed = (version, InferencePipeline.parse(stripped))
    return memory.parsed[1]


def _belongs(table: Object, pipeline: InferencePipeline) -> bool:
    """Whether a RouteTable was made for this pipeline, not for one of the same name that was deleted."""
    return any(
        reference.get("uid") == pipeline.metadata.uid for reference in table["metadata"].get("ownerReferences") or ()
    )


def _generation(table: Object | None) -> int:
    return int(((table or {}).get("spec") or {}).get("generation", 0))
