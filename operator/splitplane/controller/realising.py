"""From a planner's decision to Deployments and published routes. Pure."""

from collections.abc import Sequence

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.children import StageKey, stage_deployment
from splitplane.controller.control import PublishedRoute, RouteStep, Serving, StageSet
from splitplane.controller.settings import Settings
from splitplane.controller.sharing import Sharing
from splitplane.domain.plans import Candidate, Capacity, Stage, Steps
from splitplane.domain.snapshots import Inputs, Left


def realise(
    target: Candidate, routes: Sequence[Candidate], steps: Steps | None, *,
    pipeline: InferencePipeline, fingerprint: str, model: str, settings: Settings, inputs: Inputs | None = None,
    left: tuple[Left, ...] = (), sharing: Sharing | None = None,
) -> Serving:  # fmt: skip
    """Name the Deployments that ``target`` needs and write its routes in terms of them.

    ``routes`` run on what the target keeps resident; one that does not is left out. ``steps`` tells which of them is
    best at which bandwidth. Stages on replicas that are shared are those of another pipeline (``sharing``). Raises
    ``KeyError`` when the pipeline lacks a tier of the plan.
    """
    stages: list[StageSet] = []
    for stage in target.plan.stages:
        key = StageKey(stage.tier, stage.resident_first, stage.resident_last, fingerprint)
        whose = sharing.pipeline if sharing is not None and stage.tier == sharing.tier else pipeline
        body = stage_deployment(whose, key, replicas=stage.replicas, settings=settings)
        stages.append(StageSet(body["metadata"]["name"], key, stage.replicas))
    published: list[PublishedRoute] = []
    places = {str(route.plan): place for place, route in enumerate(routes)} if steps else {}
    for candidate in (target, *routes):
        route = _route(candidate, stages, steps, places.get(str(candidate.plan)))
        if route is not None and all(route.name != other.name for other in published):
            published.append(route)
    return Serving(
        plan=target.plan, predicted=target.predicted, stages=tuple(_merged(stages)), routes=tuple(published),
        model=model, inputs=inputs, left=left, link=(steps.source, steps.target) if steps else None,
    )  # fmt: skip


def _merged(stages: Sequence[StageSet]) -> list[StageSet]:
    """Two stages of a plan on one Deployment share its replicas."""
    found: dict[str, StageSet] = {}
    for stage in stages:
        known = found.get(stage.name)
        if known is None or known.replicas < stage.replicas:
            found[stage.name] = stage
    return list(found.values())


def _route(
    candidate: Candidate, stages: Sequence[StageSet], steps: Steps | None, place: int | None
) -> PublishedRoute | None:
    stops = []
    for stage in candidate.plan.stages:
        holder = _holder(stage, stages)
        if holder is None:
            return None
        stops.append(RouteStep(holder.name, stage.tier, stage.first, stage.last))
    capacity = Capacity(candidate.predicted.max_rate_per_second)
    best: tuple[tuple[float, float], ...] = ()
    if steps is not None and place is not None:
        capacity, best = steps.capacities[place], steps.ranges(place)
    return PublishedRoute(
        name=str(candidate.plan), steps=tuple(stops), codecs=candidate.plan.codecs,
        max_rate_per_second=capacity.rate, link_bytes=capacity.link_bytes, best=best,
    )  # fmt: skip


def _holder(stage: Stage, stages: Sequence[StageSet]) -> StageSet | None:
    """The Deployment of that tier that keeps the stage's active range resident; the narrowest, if several do."""
    fitting = [
        held
        for held in stages
        if held.key.tier == stage.tier
        and held.key.resident_first <= stage.first
        and stage.last <= held.key.resident_last
    ]
    return min(fitting, key=lambda held: held.key.resident_last - held.key.resident_first, default=None)
