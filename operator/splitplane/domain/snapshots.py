"""What one planning tick may look at (snapshot), what the user allows (policy), and what comes out (decision)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from splitplane.domain.measurements import Measurement
from splitplane.domain.plans import Candidate, Plan, Steps
from splitplane.domain.profiles import Profile


@dataclass(frozen=True, slots=True)
class PayPerUse:
    """Capacity of a tier that is there when a request comes, and paid by what runs on it.

    A request costs ``price_per_request`` and ``price_per_second`` of its service, and takes ``extra_seconds`` longer
    than on a replica of the tier.
    """

    price_per_request: float = 0.0
    price_per_second: float = 0.0
    extra_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Shared:
    """Replicas that a pipeline may use beside others, and neither makes nor pays: each keeps cuts ``[first, last)``
    resident, and requests of others keep ``busy`` of them busy, in the mean. Nothing is there where both cuts are 0.
    ``batched`` is how requests come that are computed together, of whoever they are: at this cut, with this codec.
    """

    first: int = 0
    last: int = 0
    busy: float = 0.0
    batched: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """A kind of node as the user named it, and what the cluster has of it now.

    ``price_per_hour`` is the price of one replica-hour. ``memory_limit_bytes`` is the pod's limit, ``None`` when
    the user set none. ``slots`` is the number of replicas that ready nodes can hold in all, this pipeline's own
    running replicas included. ``granted`` is how many of them it may have while pipelines that share these nodes want
    more than there are (``planner.arbitration``); ``None`` while nobody has to give way. ``pay_per_use`` is what the
    tier offers beside replicas. Where its replicas are ``shared``, all ``slots`` are used by whoever uses any.
    """

    name: str
    device_class: str
    trusted: bool
    min_replicas: int
    max_replicas: int
    price_per_hour: Measurement
    egress_price_per_gib: float
    memory_limit_bytes: int | None
    slots: int
    ready_nodes: int
    granted: int | None = None
    pay_per_use: PayPerUse | None = None
    shared: Shared | None = None

    @property
    def most_replicas(self) -> int:
        """Replicas that can be had now."""
        most = min(self.max_replicas, self.slots)
        return most if self.granted is None else min(most, self.granted)


RECENT_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the recent past of a link is read: each stands for a fifth of the time."""

RECENT_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two tiers, as the data plane measures it. ``delay_seconds`` is one-way.

    ``recent`` holds bytes per second at evenly spread shares of the recent past, rising (``RECENT_SHARES``); it is
    empty where that is not known.
    """

    source: str
    target: str
    bandwidth_bytes_per_second: Measurement
    delay_seconds: Measurement
    recent: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that may answer in another's stead: smaller, or distilled, with the same inputs and outputs.

    ``accuracy_loss`` is what its answers lose beside those of the other, the reference, from 0 to 1, with nothing lost
    on the way; what crossings lose comes on top.
    """

    name: str
    profile: Profile
    accuracy_loss: float


class Preference(StrEnum):
    COST = "Cost"
    LATENCY = "Latency"
    PRIVACY = "Privacy"


class Mode(StrEnum):
    AUTO = "Auto"
    ADVISORY = "Advisory"
    FIXED = "Fixed"


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """A split that the user dictates: tier, first and last cut by stage, and codecs."""

    stages: tuple[tuple[str, int, int], ...]
    codecs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """The user's limits and the rules of re-planning. ``None`` means no limit."""

    max_p95_seconds: float | None = None
    max_cost_per_hour: float | None = None
    raw_input_stays_trusted: bool = False
    max_leak: float | None = None
    max_accuracy_loss: float | None = None
    prefer: Preference = Preference.COST
    mode: Mode = Mode.AUTO
    fixed: FixedPlan | None = None
    codecs: tuple[str, ...] = ("fp32",)
    max_partitions: int = 2
    allow_return: bool = False
    """Whether the third partition may be on the tier of the first: requests come back to a tier from another."""
    max_utilization: float = 0.8
    min_gain: float = 0.15
    cooldown_seconds: float = 60.0
    scale_down_window_seconds: float = 300.0
    gateway_tier: str = ""
    max_batch: int = 1
    """Most samples that a stage computes together; 1: each request by itself."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The numbers that a decision rested on, kept with the plan that came of it.

    They tell later why a plan changed, and stand in for a link's numbers while these are missing. ``links`` holds
    (source, target, bytes per second, one-way delay in seconds); ``prices`` holds (tier, price of a replica-hour),
    ``seconds`` (tier, what a request alone takes there for the whole model), ``busy`` (tier whose replicas are shared,
    how many requests of others kept busy). ``tiers`` names those that could be used. ``policy`` is what the user
    allowed then. ``rules`` names all else that predictions and limits depend on, none of which wanders; it is empty in
    what was kept before there was one.
    """

    rate_per_second: float
    links: tuple[tuple[str, str, float, float], ...] = ()
    prices: tuple[tuple[str, float], ...] = ()
    tiers: tuple[str, ...] = ()
    policy: Policy | None = None
    arrival_scv: float = 1.0
    seconds: tuple[tuple[str, float], ...] = ()
    busy: tuple[tuple[str, float], ...] = ()
    rules: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """A plan that was left by choice, and what that decision rested on."""

    plan: Plan
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Active:
    """The plan that serves now. ``since`` and the switch times are in seconds of the snapshot's clock."""

    plan: Plan
    generation: int
    since: float
    last_switch_seconds: float = 0.0
    low_demand_since: float | None = None
    """Since when fewer replicas would have sufficed, without interruption: the last decision's value."""
    inputs: Inputs | None = None
    """``Decision.inputs`` of the decision that brought this plan."""
    left: tuple[Left, ...] = ()
    """``Decision.left`` of the same."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a decision about one pipeline may look at, read once.

    ``speed_corrections`` maps a tier to observed over profiled compute time (1.0 when unknown), ``offset_corrections``
    to the seconds that each request takes there beside, more or less than profiled (0.0 when unknown).
    ``arrival_scv`` is the squared coefficient of variation of inter-arrival times (1 for Poisson, 0 for a metronome).
    """

    pipeline: str
    time: float
    profile: Profile
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    arrival_rate: Measurement
    arrival_scv: float = 1.0
    speed_corrections: Mapping[str, float] = field(default_factory=dict)
    offset_corrections: Mapping[str, float] = field(default_factory=dict)
    active: Active | None = None
    reach: tuple[float, ...] = ()
    """Share of the requests that are still on their way at each cut: 1 at the input, never rising, above 0. Empty where
    all pass the whole model, as where it has no early exits. Variants have none."""
    set_aside: frozenset[str] = frozenset()
    """Digests of plans that could not be carried out lately; not proposed until their back-off ends."""
    variants: tuple[Variant, ...] = ()
    """What may answer in stead of the model of ``profile``, the reference that accuracy is measured against."""
    budget: float | None = None
    """What a site may cost per hour of the limit that its pipeline has for all sites (``planner.budgets``); ``None``
    where the policy's limit is this pipeline's own."""


class Action(StrEnum):
    START = "Start"
    SWITCH = "Switch"
    HOLD = "Hold"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next for one pipeline, with the reason and the numbers behind it.

    ``target`` is the plan that should serve (the active one on ``HOLD``; ``None`` when no plan exists at all).
    ``best`` is what the planner would pick without gates: equal to ``target`` unless a gate or the mode held it.
    ``gate`` names the gate that held, empty otherwise. ``gain`` is relative, in the preferred objective.
    ``alternatives`` are other kinds of plan by name: ``edge-only``, ``cloud-only``, and where a plan is started or
    switched to the best ``other-split``, and ``there-and-back`` where plans may come back to a tier, all of its
    variant, and the best plan of each other one (``variant NAME``, ``reference``). ``binding`` names the limits without
    which another plan would be better, as far as that was asked.
    """

    action: Action
    reason: str
    message: str
    target: Candidate | None
    best: Candidate | None = None
    current: Candidate | None = None
    gate: str = ""
    gain: float = 0.0
    feasible: bool = True
    routes: tuple[Candidate, ...] = ()
    """Admissible routes of the target, best first, each runnable on what the target keeps resident."""
    steps: Steps | None = None
    """Which of them is best at which bandwidth of the target's link; ``None`` where no link has numbers."""
    low_demand_since: float | None = None
    alternatives: Mapping[str, Candidate] = field(default_factory=dict)
    binding: tuple[str, ...] = ()
    inputs: Inputs | None = None
    """What the decision rested on: hand it to ``Active.inputs`` once ``target`` serves."""
    left: tuple[Left, ...] = ()
    """Plans that are not to come back while nothing changes: hand it to ``Active.left`` once ``target`` serves."""
