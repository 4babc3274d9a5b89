"""The slow loop's own state of one pipeline, kept as an annotation of its RouteTable.

Routes and this state are one object with one resource version: they cannot disagree, a restarted operator goes on
where the last one stopped, and of two operators only one gets its write through.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from splitplane.controller.children import StageKey
from splitplane.controller.objects import annotations_of
from splitplane.domain.plans import Plan, Prediction
from splitplane.domain.snapshots import Inputs, Left
from splitplane.planner.learning import Correction

CONTROL_ANNOTATION = "splitplane.dev/control"


@dataclass(frozen=True, slots=True)
class StageSet:
    """A stage Deployment by name, what it holds, and how many replicas a plan wants of it."""

    name: str
    key: StageKey
    replicas: int


@dataclass(frozen=True, slots=True)
class RouteStep:
    """A stage of a published route: cuts ``[first, last)`` on the pods of Deployment ``stage``."""

    stage: str
    tier: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PublishedRoute:
    """An admissible route, with the Deployments that serve it."""

    name: str
    steps: tuple[RouteStep, ...]
    codecs: tuple[str, ...]
    max_rate_per_second: float
    best: tuple[tuple[float, float], ...] = ()
    """Where it is the best: from, and below, so many bytes per second of the serving plan's link."""
    link_bytes: float = 0.0
    """Bytes of that link to be counted for a request (``domain.plans.Capacity``)."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A plan made concrete. ``model`` is the name of the ModelProfile that it was made from."""

    plan: Plan
    predicted: Prediction
    stages: tuple[StageSet, ...]
    routes: tuple[PublishedRoute, ...]
    model: str
    inputs: Inputs | None = None
    left: tuple[Left, ...] = ()
    link: tuple[str, str] | None = None
    """Source and target tier of the link whose bandwidth decides among the routes; ``None``: it is not measured."""

    def replicas(self, name: str) -> int:
        return max((stage.replicas for stage in self.stages if stage.name == name), default=0)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(stage.name for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Pending:
    """A plan whose pods are being prepared while another serves (or none does yet)."""

    serving: Serving
    reason: str
    spec_generation: int
    started: float
    deadline: float
    loaded_by: float = 0.0
    """Until when pods that nothing is wrong with may go on loading weights, where that is after the deadline."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Deployments that no new request uses; they go once requests up to ``generation`` have ended."""

    generation: int
    stages: tuple[StageSet, ...]
    since: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Aside:
    """A plan that could not be carried out; not tried again before ``until`` (seconds since the epoch).

    ``generation`` is that of the pipeline's spec: another spec is another chance.
    """

    generation: int
    digest: str
    summary: str
    reason: str
    failures: int
    until: float


@dataclass(frozen=True, slots=True)
class Learnt:
    """How a tier differs from its profile; ``subject`` names the model and the device that this was learnt of."""

    tier: str
    subject: str
    correction: Correction


@dataclass(frozen=True, slots=True)
class Control:
    """State of one pipeline. ``switching_since`` is when the switch that is not yet acknowledged was decided."""

    active: Serving | None = None
    since: float = 0.0
    pending: Pending | None = None
    draining: tuple[Draining, ...] = ()
    set_aside: tuple[Aside, ...] = ()
    last_switch_seconds: float = 0.0
    switching_since: float | None = None
    low_demand_since: float | None = None
    learnt: tuple[Learnt, ...] = ()

    @property
    def coming(self) -> tuple[StageSet, ...]:
        """What new requests use, or will."""
        servings = (self.active, self.pending.serving if self.pending else None)
        return tuple(stage for serving in servings if serving for stage in serving.stages)

    @property
    def needed(self) -> tuple[StageSet, ...]:
        """The same, and what drains."""
        return (*self.coming, *(stage for drain in self.draining for stage in drain.stages))

    def named(self) -> frozenset[str]:
        """Every Deployment that this state still needs."""
        return frozenset(stage.name for stage in self.needed)

    def wanted(self) -> dict[str, int]:
        """Replicas by Deployment: the most that any of serving, preparing and draining asks for."""
        wanted: dict[str, int] = {}
        for stage in self.needed:
            wanted[stage.name] = max(wanted.get(stage.name, 0), stage.replicas)
        return wanted

    def aside_now(self, generation: int, now: float) -> frozenset[str]:
        """Digests of the plans that are not to be tried now, under this generation of the spec."""
        return frozenset(a.digest for a in self.set_aside if a.until > now and a.generation == generation)

    def with_aside(
        self, plan: Plan, *, generation: int, reason: str, now: float, base: float = 60.0, most: float = 900.0
    ) -> "Control":
        """Set ``plan`` aside; each further failure doubles the time, and old entries are forgotten."""
        before = next((a for a in self.set_aside if (a.digest, a.generation) == (plan.digest, generation)), None)
        failures = before.failures + 1 if before else 1
        until = now + min(most, base * 2 ** (failures - 1))
        aside = Aside(generation, plan.digest, str(plan), reason, failures, until)
        kept = [old for old in self.set_aside if old.digest != plan.digest and old.until > now - most]
        return replace(self, set_aside=(*kept[-15:], aside))


_ADAPTER: TypeAdapter[Control] = TypeAdapter(Control)


def dump(control: Control) -> str:
    """JSON text for the annotation."""
    # The standard encoder keeps infinity and NaN, which predictions may hold.
    return json.dumps(_ADAPTER.dump_python(control, exclude_defaults=True), separators=(",", ":"))


def load(route_table: Mapping[str, Any] | None) -> Control:
    """The state kept with a RouteTable; a fresh one when there is none. Raises ``ValueError`` when it is unreadable."""
    if route_table is None:
        return Control()
    text = annotations_of(route_table).get(CONTROL_ANNOTATION)
    return _ADAPTER.validate_python(json.loads(text)) if text else Control()
