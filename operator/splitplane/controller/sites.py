"""Pipelines with ``spec.sites``: a pipeline for each site made, kept and taken away, and what they all are, told."""

import math
import time

from splitplane.adapters.cluster import Cluster, Forbidden, Invalid
from splitplane.adapters.kinds import PIPELINE
from splitplane.adapters.metrics import MetricsSnapshot
from splitplane.api.pipelines import InferencePipeline
from splitplane.api.routes import RouteTableStatus
from splitplane.api.statuses import MOST_SITES
from splitplane.controller import gateway_reports, site_statuses
from splitplane.controller.arbitrating import Arbiter
from splitplane.controller.children import DESIRED_ANNOTATION
from splitplane.controller.naming import tier_of
from splitplane.controller.objects import Key, Object, annotations_of, is_terminating, labels_of
from splitplane.controller.pools import Held, Pools
from splitplane.controller.rounds import Memory
from splitplane.controller.site_pipelines import find, of_sites, site_name, site_of, site_pipeline
from splitplane.controller.site_statuses import Problem, Site
from splitplane.controller.snapshots import links
from splitplane.controller.switching import Note
from splitplane.controller.telemetry import Telemetry
from splitplane.controller.telling import Telling
from splitplane.controller.view import View

GONE_SECONDS = 300.0
"""How long no node must have named a site before its pipeline goes: a node may be replaced meanwhile."""
_REMOVED = -math.inf
_MOST_NAMED = 5


class Sites:
    """Looks after the pipelines that have sites; their sites' pipelines are reconciled as any other."""

    def __init__(
        self, *, cluster: Cluster, view: View, telemetry: Telemetry, telling: Telling, pools: Pools, arbiter: Arbiter
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._view = view
        self._telemetry = telemetry
        self._telling = telling
        self._pools = pools
        self._arbiter = arbiter
        self._measured: dict[Key, set[tuple[str, str]]] = {}
        """Which sites (pipeline, site) the operator's metrics show."""

    def keep_only(self, keys: set[Key]) -> None:
        """Forget pipelines that are gone."""
        for key in self._measured.keys() - keys:
            self._measure(key, ())
            del self._measured[key]

    async def reconcile(
        self, body: Object, pipeline: InferencePipeline, memory: Memory, metrics: MetricsSnapshot, *, now: float
    ) -> None:
        """One round about a pipeline with sites. Raises :class:`ClusterError`; the next round tries again."""
        memory.planned_at = now
        notes: list[Note] = []
        problems: list[Problem] = []
        sites: list[Site] = []
        held: Held | None = None
        try:
            sites = await self._keep(body, pipeline, memory, problems, notes, now=now)
            held = await self._pools.keep(pipeline, memory, metrics, notes, now=now)
        except (Forbidden, Invalid) as error:
            problems.insert(0, ("ApiRefused", str(error)))
            self._telemetry.errors.labels(type(error).__name__).inc()
            mine = of_sites(pipeline, self._view.pipelines())
            sites = [Site(site_of(each), key[1], each) for key, each in sorted(mine.items())]
        sites = [self._looked_at(pipeline, site, metrics) for site in sites]
        key = pipeline.metadata.namespace, pipeline.metadata.name
        self._measure(key, sites)
        grant = self._arbiter.grant(key)
        status = site_statuses.build(pipeline, body.get("status") or {}, sites, problems, held, grant, now=now)
        await self._telling.write(body, memory, status, notes, now=now)

    async def _keep(
        self, body: Object, pipeline: InferencePipeline, memory: Memory, problems: list[Problem], notes: list[Note],
        *, now: float,
    ) -> list[Site]:  # fmt: skip
        """Make the sites' pipelines what they should be; those of the sites that there are."""
        namespace = pipeline.metadata.namespace
        found = find(pipeline, self._view.nodes())
        mine = of_sites(pipeline, self._view.pipelines())
        present = {site_of(each): each for each in mine.values() if site_of(each) and not is_terminating(each)}
        for site in found.sites | (present.keys() - memory.sites.keys()):
            memory.sites[site] = now
        wanted = found.sites | {site for site in present if now - memory.sites[site] < GONE_SECONDS}
        # One that serves gives way to no new one.
        served = sorted(wanted, key=lambda site: (site not in present, site))[:MOST_SITES]
        problems += _problems(pipeline, found.sites, found.unnamed, len(wanted) - len(served))
        sites = []
        for site in sorted(served):
            name = site_name(pipeline, site)
            held = self._view.pipeline((namespace, name))
            if held is not None and (namespace, name) not in mine:
                text = f"site {site}: an InferencePipeline {name} exists that is not this one's; rename one of them"
                problems.append(("NameTaken", text))
            elif held is None or not is_terminating(held):
                held = await self._apply(site_pipeline(body, pipeline, site), held, memory)
                if site not in present:
                    notes.append(Note("Normal", "SiteAdded", f"site {site}: operated as pipeline {name}"))
            sites.append(Site(site, name, held if (namespace, name) in mine else None))
        for site in sorted(present.keys() - set(served)):
            gone = present[site]
            await self._cluster.delete(PIPELINE, gone["metadata"]["name"], namespace, uid=gone["metadata"]["uid"])
            self._view.forget("InferencePipeline", (namespace, gone["metadata"]["name"]))
            if memory.sites[site] != _REMOVED:  # else the watch has not told yet that it is gone
                text = f"site {site}: no node has named it for {GONE_SECONDS:.0f} s"
                notes.append(Note("Normal", "SiteRemoved", text))
            memory.sites[site] = _REMOVED
        return sites

    async def _apply(self, wanted: Object, held: Object | None, memory: Memory) -> Object:
        """Write a site's pipeline if it is not what it should be: another spec, or changed by somebody else since."""
        place = wanted["kind"], wanted["metadata"]["name"]
        digest = annotations_of(wanted)[DESIRED_ANNOTATION]
        if held is not None:
            state = f"{annotations_of(held).get(DESIRED_ANNOTATION)}/{held['metadata'].get('generation')}"
            same = memory.applied.get(place, ("", 0.0))[0] == state and state.startswith(f"{digest}/")
            if same and labels_of(wanted).items() <= labels_of(held).items():
                return held
        written = await self._cluster.apply(wanted)
        self._view.remember(written)
        memory.applied[place] = (f"{digest}/{written['metadata'].get('generation')}", time.monotonic())
        return written

    def _looked_at(self, pipeline: InferencePipeline, site: Site, metrics: MetricsSnapshot) -> Site:
        """With the links that its gateways measure."""
        if site.body is None:
            return site
        key = pipeline.metadata.namespace, site.pipeline
        table = self._view.route_table(key) or {}
        reports = RouteTableStatus.parse(table.get("status") or {}).gateways.values()
        tiers = [tier.name for tier in pipeline.spec.tiers]
        measured = links(tiers, metrics.of(key), gateway_reports.merged(reports).links)
        own = [link for link in measured if link.source == pipeline.spec.gateway.tier]
        return Site(site.name, site.pipeline, site.body, own)

    def _measure(self, key: Key, sites: "list[Site] | tuple[()]") -> None:
        """Show these sites, and no others of the pipeline, in the operator's metrics."""
        shown = {(site.pipeline, site.name) for site in sites}
        namespace, name = key
        for pipeline, site in self._measured.get(key, set()) - shown:
            self._telemetry.site_ready.remove(namespace, name, site, pipeline)
        for each in sites:
            ready = each.condition("Ready").status == "True"
            self._telemetry.site_ready.labels(namespace, name, each.name, each.pipeline).set(ready)
        self._measured[key] = shown


def _problems(
    pipeline: InferencePipeline, sites: frozenset[str], unnamed: tuple[str, ...], left_out: int
) -> list[Problem]:
    """What keeps nodes or sites from being served, and what to do about it."""
    assert pipeline.spec.sites is not None
    tier, key = tier_of(pipeline.spec, pipeline.spec.gateway.tier), pipeline.spec.sites.topology_key
    found = []
    if not sites:
        selector = ",".join(f"{name}={value}" for name, value in sorted(tier.node_selector.items()))
        text = f"tier {tier.name}: no node with the labels {selector} has the label {key}. Label nodes with their site."
        found.append(("NoSites", text))
    elif unnamed:
        more = f" and {len(unnamed) - _MOST_NAMED} more" if unnamed[_MOST_NAMED:] else ""
        text = f"tier {tier.name}: without the label {key}, so of no site: {', '.join(unnamed[:_MOST_NAMED])}{more}"
        found.append(("NodesWithoutSite", f"{text}. Label them, or keep them out of the tier's nodeSelector."))
    if left_out:
        text = f"{left_out} sites are not served, as a pipeline may have {MOST_SITES}. Apply another for the rest."
        found.append(("TooManySites", text))
    return found
