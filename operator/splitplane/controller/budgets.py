"""What each site of a pipeline may spend of the pipeline's limit on cost, from what each was planned on last."""

from dataclasses import dataclass, field

from splitplane.controller import control as controls
from splitplane.controller.objects import COMPONENT_LABEL, PIPELINE_LABEL, SITE, Key, Object, key_of, labels_of
from splitplane.controller.site_pipelines import is_owned
from splitplane.controller.view import View
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import Kept
from splitplane.planner.budgets import Division, Spending, divide, spending


@dataclass(slots=True)
class _State:
    """What is known of the sites of the pipeline with this uid, each by the name of its pipeline."""

    uid: str
    needs: dict[str, Spending] = field(default_factory=dict)
    division: Division | None = None


class Budgets:
    """Divides the limits on cost of pipelines with sites."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._states: dict[Key, _State] = {}

    def keep_only(self, keys: set[Key]) -> None:
        """Forget pipelines that are gone."""
        for key in self._states.keys() - keys:
            del self._states[key]

    def part(
        self, body: Object, seen: Snapshot, policy: Policy, kept: Kept, *, spent: float, now: float
    ) -> float | None:  # fmt: skip
        """What the site whose pipeline is ``body`` may cost per hour, planned on ``seen``; ``None`` for any other
        pipeline, and where there is no limit. ``spent`` is what the sites cost together that is none's own.

        Raises ``ContradictionError`` as ``plan`` does.
        """
        namespace, name = key_of(body)
        labels = labels_of(body)
        parent = self._view.pipeline((namespace, labels.get(PIPELINE_LABEL, "")))
        if policy.max_cost_per_hour is None or labels.get(COMPONENT_LABEL) != SITE or parent is None:
            return None
        uid = parent["metadata"].get("uid", "")
        if not is_owned(body, uid):
            return None
        state = self._states.get(key_of(parent))
        sites = {each["metadata"]["name"] for each in self._view.pipelines() if is_owned(each, uid)}
        if state is None or state.uid != uid:
            state = self._states[key_of(parent)] = self._begun(namespace, uid, sites)
        state.needs[name] = spending(seen, policy, kept=kept)
        known = {site: state.needs[site] for site in sorted(sites) if site in state.needs}
        usual = Spending(*(sum(values) / len(known) for values in zip(*map(_numbers, known.values()), strict=True)))
        state.division = divide(
            {site: known.get(site, usual) for site in sorted(sites)},
            max(0.0, policy.max_cost_per_hour - spent), state.division,
            now=now, window_seconds=policy.scale_down_window_seconds,
        )  # fmt: skip
        return state.division.parts[name]

    def _begun(self, namespace: str, uid: str, sites: set[str]) -> _State:
        """As if each site needed what the plan costs that serves there: a restarted operator changes none."""
        state = _State(uid)
        for site in sites:
            table = self._view.route_table((namespace, site))
            try:
                active = controls.load(table).active
            except ValueError:  # the site's own round tells of it
                continue
            cost = active.predicted.cost_per_hour if active is not None else 0.0
            if 0.0 < cost < float("inf"):
                state.needs[site] = Spending(cost, cost)
        if state.needs.keys() == sites:
            state.division = Division({site: need.least for site, need in state.needs.items()})
        return state


def _numbers(need: Spending) -> tuple[float, float]:
    return need.least, need.roomy
