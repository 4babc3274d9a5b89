"""``InferencePipeline``: what a user asks for, and the rules that make a request sensible."""

from typing import Annotated, Literal

from pydantic import Field

from splitplane.api.defences import CutDefence
from splitplane.api.fields import (
    Codec,
    DecimalString,
    Metadata,
    Model,
    Name,
    Share,
    TierName,
    between,
    distinct,
    keyed,
    ordered,
    rule,
    rules,
)
from splitplane.api.gateways import GatewaySpec
from splitplane.api.models import ModelSpec
from splitplane.api.pods import (
    LabelName,
    LabelValue,
    ObjectName,
    Resources,
    Tolerations,
)
from splitplane.api.statuses import PipelineStatus

KIND = "InferencePipeline"
PLURAL = "inferencepipelines"

MAX_PARTITIONS = 2
MAX_CODECS = 4
"""The planner tries every allowed codec at every cut."""
NAMES_LENGTH = 45
"""Longest pipeline's and tier's name together: children are called ``<pipeline>-profile-<tier>-<hash8>``, within 63."""
SITE_LENGTH = 15
"""What of that the name of a site takes, with the dash before it."""


class Objectives(Model):
    """Limits that every plan must keep, and what to minimise among those that do."""

    latency_p95_milliseconds: Annotated[int, between(1, 600_000)] | None = None
    """Highest 95th percentile of a request's time at the gateway. Default: no limit."""
    max_cost_per_hour: DecimalString | None = None
    """Highest cost of all replicas and of traffic, in the currency of the prices. Default: no limit."""
    max_accuracy_loss: Share | None = None
    """Highest loss of accuracy by lossy codecs, from 0 to 1, as measured on ``model.calibration`` or by ``splitplane
    model accuracy``; with a codec that was not measured nothing crosses. Default: no limit."""
    max_leakage: Share | None = None
    """Highest share of the input, from 0 to 1, that an attack reconstructs from what leaves the tiers marked
    ``trusted``, a lower bound, as measured on ``model.calibration`` or by ``splitplane model leak``; what was not
    measured does not leave. Default: no limit."""
    defence: CutDefence | None = None
    """Noise or dropout on what leaves the tiers marked ``trusted``, by which leak falls, and accuracy, too. Both are
    then measured with it. The input itself, where it may leave, is not defended."""
    raw_input_stays_trusted: bool = False
    """The model's input may not leave tiers marked ``trusted``."""
    prefer: Literal["Cost", "Latency", "Privacy"] = "Cost"
    """What counts among plans that keep all limits. ``Privacy``: the deepest cut at which a request leaves the tiers
    marked ``trusted``, then cost."""


class ReplicaRange(Model):
    """How many replicas a stage of this tier may have."""

    model_config = rules(rule("self.min <= self.max", "must not be larger than max", field=".min"))

    min: Annotated[int, between(0, 100)] = 0
    """The fewest that a stage keeps, however little it has to do."""
    max: Annotated[int, between(1, 100)]
    """The most that a stage gets, however much it has to do."""


MOST_LABELS = 16
_Labels = Annotated[
    dict[LabelName, LabelValue],
    Field(min_length=1, max_length=MOST_LABELS),
]


class WeightsCache(Model):
    """Where pods of a tier keep downloaded weights, for those that come after them."""

    claim_name: ObjectName
    """A PersistentVolumeClaim that all the tier's nodes can mount: of the node's own disk for a tier of one node, else
    ReadWriteMany. What was used least lately makes room."""


class TierSpec(Model):
    """A kind of node."""

    name: TierName
    node_selector: _Labels
    """Labels of this tier's nodes."""
    tolerations: Tolerations = ()
    device_class: Name
    """Tiers of the same device class share profile measurements: give them the same CPU limit, and name another class
    after changing it."""
    trusted: bool = False
    """Whether raw inputs may be processed here."""
    replicas: ReplicaRange
    resources: Resources = Resources()
    """What each replica asks for and may use at most. A model computes with as many threads as the CPU limit has whole
    cores, at least one; with one if there is no limit."""
    price_per_hour: DecimalString | None = None
    """Price of one replica for an hour, used when Prometheus has no ``node_total_hourly_cost`` for the tier's nodes."""
    weights_cache: WeightsCache | None = None
    """Default: each pod downloads the weights for itself, onto its node's scratch space."""
    egress_price_per_gib: DecimalString = Field(default="0", alias="egressPricePerGiB")
    """Price of a GiB that leaves this tier for another."""


class FixedStage(Model):
    """A part of the model, by the cuts that bound it."""

    model_config = rules(
        rule("self.firstCut < self.lastCut", "must be larger than firstCut", field=".lastCut"),
    )

    tier: TierName
    first_cut: Annotated[int, between(0, 1023)]
    last_cut: Annotated[int, between(1, 1024)]


class FixedPartitioning(Model):
    """A split that the user dictates."""

    model_config = rules(
        rule("self.stages[0].firstCut == 0", "the first stage must start at cut 0, the model's input", field=".stages"),
        rule(
            "self.stages.size() < 2 || self.stages[0].lastCut == self.stages[1].firstCut",
            "the second stage's firstCut must equal the first stage's lastCut",
            field=".stages",
        ),
        rule(
            "(has(self.codecs) ? self.codecs.size() : 0) == self.stages.size() - 1",
            "give one codec for each crossing between two stages: one fewer than stages",
            field=".codecs",
        ),
    )

    stages: Annotated[tuple[FixedStage, ...], ordered(least=1, most=MAX_PARTITIONS)]
    codecs: Annotated[tuple[Codec, ...], ordered(most=MAX_PARTITIONS - 1)] = ()


class Partitioning(Model):
    """How freely the model is split."""

    model_config = rules(
        rule(
            "self.mode != 'Fixed' || has(self.fixed)", "required with mode Fixed; add it or choose Auto", field=".fixed"
        ),
        rule(
            "self.mode == 'Fixed' || !has(self.fixed)",
            "only allowed with mode Fixed; remove it or set mode Fixed",
            field=".fixed",
        ),
        rule(
            "!has(self.fixed) || self.fixed.stages.size() <= self.maxPartitions",
            "must be at least the number of stages in fixed.stages",
            field=".maxPartitions",
        ),
    )

    mode: Literal["Auto", "Advisory", "Fixed"] = "Auto"
    """``Auto`` re-plans; ``Advisory`` keeps its plan while the spec allows it, and reports better ones; ``Fixed`` takes
    ``fixed``."""
    max_partitions: Annotated[int, between(1, MAX_PARTITIONS)] = MAX_PARTITIONS
    codecs: Annotated[tuple[Codec, ...], distinct(least=1, most=MAX_CODECS)] = ("fp32",)
    """Encodings that a plan may use between tiers. All but ``fp32`` and ``fp32+zstd`` lose accuracy: ask for them by
    name."""
    fixed: FixedPartitioning | None = None


class Replanning(Model):
    """When a better plan is taken."""

    model_config = rules(
        rule(
            "self.scaleDownWindowSeconds == 0 || self.scaleDownWindowSeconds >= self.intervalSeconds",
            "must be 0 or at least intervalSeconds: a shorter window never takes effect",
            field=".scaleDownWindowSeconds",
        ),
    )

    interval_seconds: Annotated[int, between(5, 3600)] = 60
    min_gain_percent: Annotated[int, between(0, 100)] = 15
    """Gain below which a change is not worth its disturbance."""
    cooldown_seconds: Annotated[int, between(0, 86_400)] = 60
    """Least time between two changes that no limit forces."""
    scale_down_window_seconds: Annotated[int, between(0, 86_400)] = 300
    """How long fewer replicas must have sufficed before any are taken away."""
    max_utilization_percent: Annotated[int, between(10, 95)] = 80
    """Highest share of time that a replica or link may be busy. A limit on latency asks for more room where it must;
    beyond 80 predictions of p95 have not been checked."""


class Batching(Model):
    """How far a stage may compute requests together."""

    max_size: Annotated[int, between(1, 128)] = 8
    """Most samples at once; 1 turns batching off. A stage takes fewer where it measures that more do not pay, where its
    memory limit leaves no room, or where they would take longer than a quarter of
    ``objectives.latencyP95Milliseconds``. Plans count on it as far as the profile has batches: up to 16 at once."""
    max_wait_milliseconds: Annotated[int, between(0, 1000)] | None = None
    """Longest time that a request waits for others while a batch is not full. Default: at most a quarter of the time
    that one sample takes, and no wait while requests come one by one."""


class Sites(Model):
    """Many edge sites, each with nodes of the gateway's tier, a gateway, a link to the other tiers and a plan of its
    own; other tiers are there for all of them. A site is operated as a pipeline of its own, ``<pipeline>-<site>``."""

    model_config = rules(
        rule(
            "self.topologyKey == oldSelf.topologyKey",
            "cannot be changed: what serves would be torn down; delete the pipeline and apply it anew",
            field=".topologyKey",
        ),
        rule(
            "has(self.sharedTier) == has(oldSelf.sharedTier)"
            " && (!has(self.sharedTier) || self.sharedTier == oldSelf.sharedTier)",
            "cannot be changed: what serves would be torn down; delete the pipeline and apply it anew",
            field=".sharedTier",
        ),
    )

    topology_key: LabelName
    """Label of the gateway's tier's nodes that names the site of each, such as ``topology.kubernetes.io/zone``. Limits,
    ``replicas`` among them, hold for each site by itself, but ``maxCostPerHour`` for all together."""
    shared_tier: TierName | None = None
    """A tier whose replicas serve all sites: they are made once for all, ``replicas`` of that tier holds for all sites
    together, and sites whose cuts lie in what these keep resident use them. A site's own cost is without them. Default:
    each site has replicas of its own on every tier."""


_STAGES = "self.partitioning.fixed.stages"
_INPUTS = "self.model.calibration.uri"
_AT_SITES = "!has(self.sites) || self.tiers.all(t, t.name != self.gateway.tier ||"


class InferencePipelineSpec(Model):
    """A model, the tiers to run it on, and the limits to keep."""

    model_config = rules(
        rule(
            "self.tiers.exists(t, t.name == self.gateway.tier)",
            "must be the name of one of spec.tiers; add that tier or name another",
            field=".gateway.tier",
        ),
        rule(
            "!self.objectives.rawInputStaysTrusted || self.tiers.exists(t, t.trusted)",
            "rawInputStaysTrusted needs a tier with trusted: true; mark one, or drop the objective",
            field=".tiers",
        ),
        rule(
            "!self.objectives.rawInputStaysTrusted || !self.tiers.exists(t, t.name == self.gateway.tier && !t.trusted)",
            "must be a tier with trusted: true, because of objectives.rawInputStaysTrusted",
            field=".gateway.tier",
        ),
        rule(
            "!has(self.model.calibration) || self.tiers.exists(t, t.trusted)",
            "model.calibration needs a tier with trusted: true, to be read there; mark one, or remove it",
            field=".tiers",
        ),
        rule(
            f"!has(self.model.calibration) || !{_INPUTS}.startsWith('pvc://') || self.tiers.all(t, t.trusted)"
            f" || !self.model.weights.uri.startsWith('pvc://' + {_INPUTS}.split('/')[2] + '/')"
            " && (!has(self.model.volumes) || self.model.volumes.all(v, !has(v.persistentVolumeClaim)"
            f" || v.persistentVolumeClaim.claimName != {_INPUTS}.split('/')[2]))"
            " && self.tiers.all(t, t.trusted || !has(t.weightsCache)"
            f" || t.weightsCache.claimName != {_INPUTS}.split('/')[2])",
            "must be on a claim of its own: that of the weights, one in model.volumes, or a tier's weightsCache is"
            " mounted on tiers that are not trusted, too",
            field=".model.calibration.uri",
        ),
        rule(
            f"!has(self.partitioning.fixed) || {_STAGES}.all(s, self.tiers.exists(t, t.name == s.tier))",
            "every stage's tier must be the name of one of spec.tiers; add that tier or name another",
            field=".partitioning.fixed.stages",
        ),
        rule(
            "!self.objectives.rawInputStaysTrusted || !has(self.partitioning.fixed)"
            f" || !self.tiers.exists(t, t.name == {_STAGES}[0].tier && !t.trusted)",
            "the first stage must be on a tier with trusted: true, because of objectives.rawInputStaysTrusted",
            field=".partitioning.fixed.stages",
        ),
        rule(
            "has(self.sites) == has(oldSelf.sites)",
            "can be neither added nor taken away: what serves would be torn down; delete the pipeline and apply it"
            " anew",
            field=".sites",
        ),
        rule(
            f"{_AT_SITES} !(self.sites.topologyKey in t.nodeSelector))",
            "the gateway's tier selects nodes of one site by this label; remove it from that tier's nodeSelector",
            field=".sites",
        ),
        rule(
            "!has(self.sites) || !has(self.sites.sharedTier) || (self.sites.sharedTier != self.gateway.tier"
            " && self.tiers.exists(t, t.name == self.sites.sharedTier))",
            "must be the name of one of spec.tiers other than the gateway's; name another",
            field=".sites.sharedTier",
        ),
        rule(
            f"{_AT_SITES} size(t.nodeSelector) < {MOST_LABELS})",
            f"the gateway's tier may have {MOST_LABELS - 1} labels in its nodeSelector, as the site's is added",
            field=".sites",
        ),
    )

    model: ModelSpec
    objectives: Objectives = Objectives()
    tiers: Annotated[tuple[TierSpec, ...], keyed("name", least=1, most=8)]
    partitioning: Partitioning = Partitioning()
    batching: Batching = Batching()
    replanning: Replanning = Replanning()
    gateway: GatewaySpec
    sites: Sites | None = None
    """Default: the gateway's tier is one site."""
    priority: Annotated[int, between(-1000, 1000)] = 0
    """Who gets nodes that several pipelines want more of than there are: those of a higher priority are settled first,
    those of one priority share by how much of their load each can carry."""
    suspend: bool = False
    """Keep serving the active plan, and make no other."""


class InferencePipeline(Model):
    """A PyTorch model served across edge and cloud nodes, split where that suits its limits best."""

    model_config = rules(
        rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name: must be lower-case letters, digits and inner dashes, a letter first: it names a Service",
        ),
        rule(
            f"self.spec.tiers.all(t, size(self.metadata.name) + size(t.name) <= {NAMES_LENGTH})",
            f"metadata.name: together with the longest tier's name at most {NAMES_LENGTH} characters; shorten one",
        ),
        rule(
            "!has(self.spec.sites) || self.spec.tiers.all(t,"
            f" size(self.metadata.name) + size(t.name) <= {NAMES_LENGTH - SITE_LENGTH})",
            "metadata.name: together with the longest tier's name at most"
            f" {NAMES_LENGTH - SITE_LENGTH} characters with spec.sites, as names of sites are added; shorten one",
        ),
    )

    metadata: Metadata
    spec: InferencePipelineSpec
    status: PipelineStatus = PipelineStatus()
