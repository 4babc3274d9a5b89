"""Sharing nodes among pipelines that together want more of them than there are: claims, and what is granted on them.

Each pipeline's claim is noted whenever it is planned. While nobody is short of anything nothing else happens; else all
who share the nodes in question are settled together (``planner.arbitration``) while planning goes on, and each plans
anew with its grant.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.capacity import amounts, capacity
from splitplane.controller.objects import COMPONENT_LABEL, PIPELINE_LABEL, Key, Object, labels_of
from splitplane.controller.snapshots import TierState, placement_of
from splitplane.controller.telemetry import Telemetry
from splitplane.controller.view import View
from splitplane.domain.resources import pod_requests
from splitplane.domain.snapshots import Mode, Policy, Snapshot
from splitplane.planner import Kept
from splitplane.planner.arbitration import Settlement, arbitrate
from splitplane.planner.claims import Claim, Need, Offer, Room
from splitplane.planner.granting import named
from splitplane.planner.offers import offers, wish
from splitplane.planner.pool_offers import pool_offers, pool_wish
from splitplane.planner.pools import Pool
from splitplane.planner.shared_replay import dump_settling

_log = logging.getLogger(__name__)

_EVERY_SECONDS = 10.0
_CALM_SECONDS = 30.0
"""How long nobody must be short before grants are taken back: a wish may come back with the next breath of noise."""

_WAIT_SECONDS = 0.25
"""How long a round of planning waits for a settlement; what takes longer is granted in a later one."""

_MOST_RECORDED = 1 << 20
"""Bytes of a line of the log: of a thousand pipelines it would be one of megabytes, every few seconds."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Replicas that a pipeline may have by tier, while it shares nodes with others; why, if that is less than it asked
    for."""

    replicas: Mapping[str, int]
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Standing:
    """A pipeline as it was planned last. ``offers`` on these tiers count as slots what other pipelines' stages hold;
    ``short`` names the tiers on which it would take more than it can have."""

    priority: int
    offers: Callable[[tuple[str, ...]], tuple[Offer, ...]]
    needs: Mapping[str, Need]
    short: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Settled:
    """What came of settling so many pipelines on so many nodes, and how many seconds it took. ``record`` is all that
    it rested on, where it changed what is granted."""

    grants: dict[Key, Grant]
    pipelines: int
    nodes: int
    gap: float
    seconds: float
    record: str


class Arbiter:
    """Keeps the claims of all pipelines and settles them when somebody falls short."""

    def __init__(self, *, view: View, telemetry: Telemetry) -> None:
        self._view = view
        self._telemetry = telemetry
        self._standing: dict[Key, _Standing] = {}
        self._grants: dict[Key, Grant] = {}
        self._settled_at = self._short_at = 0.0
        self._settling: asyncio.Task[_Settled] | None = None

    def grant(self, key: Key) -> Grant | None:
        """What is granted to a pipeline; ``None`` while it may have what it wants."""
        return self._grants.get(key)

    def forget(self, key: Key) -> None:
        """A pipeline makes no claims (any more): what its pods hold counts as taken."""
        self._standing.pop(key, None)
        self._grants.pop(key, None)

    def keep_only(self, keys: set[Key]) -> None:
        for key in self._standing.keys() - keys:
            self.forget(key)

    def note(
        self, key: Key, pipeline: InferencePipeline, seen: Snapshot, policy: Policy, kept: Kept,
        tiers: Mapping[str, TierState],
    ) -> None:  # fmt: skip
        """Take note of what a pipeline rests on at this planning, and of the ``tiers`` on whose nodes it competes.
        Raises ``ContradictionError`` as ``plan`` does."""
        if policy.mode is Mode.ADVISORY:
            self.forget(key)  # its plan stays as it is
            return
        alone = _with_slots(seen, self._reach(tiers))
        had = {each.name: each.most_replicas for each in seen.tiers}
        first = wish(alone, policy, kept=kept) if alone.tiers != seen.tiers else None
        used = {stage.tier for stage in first.plan.stages} if first else set()
        self._standing[key] = _Standing(
            priority=pipeline.spec.priority,
            offers=cache(partial(offers, alone, policy, kept=kept)),
            needs=_needs(tiers),
            short=frozenset(tier for tier in used if first and first.plan.replicas(tier) > had[tier]),
        )

    def note_pool(
        self, key: Key, pipeline: InferencePipeline, seen: Mapping[str, Snapshot], policy: Policy, kept: Kept,
        tier: TierState, held: Pool | None,
    ) -> None:  # fmt: skip
        """The same of what a pipeline's sites share on a ``tier``: one claim of ``pipeline``, made for all sites, of
        which each was ``seen`` so. Raises ``ContradictionError``."""
        if policy.mode is Mode.ADVISORY:
            self.forget(key)
            return
        name = tier.spec.name
        reach = self._reach({name: tier})
        alone = {site: _with_slots(snapshot, reach) for site, snapshot in seen.items()}
        most = min(each.most_replicas for snapshot in seen.values() for each in snapshot.tiers if each.name == name)
        short = alone != seen and pool_wish(alone, policy, name, kept=kept) > most

        @cache
        def offered(_tiers: tuple[str, ...]) -> tuple[Offer, ...]:
            return pool_offers(alone, policy, name, held=held, kept=kept)

        self._standing[key] = _Standing(
            pipeline.spec.priority, offered, _needs({name: tier}), frozenset({name} if short else ())
        )

    async def settle(self, now: float) -> None:
        """Grant anew, if somebody is short and the last time is long enough ago; take grants back if nobody has been
        for some time.

        Waits for no more than a fraction of a second. What is not settled by then is granted by a later call.
        """
        if any(standing.short for standing in self._standing.values()):
            self._short_at = now
        else:
            self._settling = None  # what comes of one that still runs would be late when somebody is short again
            if self._grants and now - self._short_at >= _CALM_SECONDS:
                _log.info("Grants are taken back, as nobody is short any more")
                self._grants.clear()
            return
        if self._settling is None:
            if now - self._settled_at < _EVERY_SECONDS:
                return
            self._settled_at = now
            contested = self._contested()
            rooms = self._rooms(frozenset(contested))
            self._settling = asyncio.create_task(asyncio.to_thread(_settle, contested, rooms, dict(self._grants)))
        done, _ = await asyncio.wait({self._settling}, timeout=_WAIT_SECONDS)
        if not done:
            return
        settling, self._settling = self._settling, None
        settled = settling.result()
        self._telemetry.arbitration.observe(settled.seconds)
        self._telemetry.arbitration_gap.set(settled.gap)
        self._grants = {key: grant for key, grant in settled.grants.items() if key in self._standing}
        if self._grants:
            _log.info(
                "%d pipelines share %d nodes; at most %.1f %% is lost",
                settled.pipelines, settled.nodes, 100 * settled.gap,
            )  # fmt: skip
        if settled.record:
            _log.info("Grants of %d pipelines: %s", settled.pipelines, settled.record)

    def _contested(self) -> dict[Key, tuple[_Standing, tuple[str, ...]]]:
        """Who shares nodes that somebody is short of, on which tiers."""
        nodes = frozenset[str]().union(
            *(standing.needs[tier].nodes for standing in self._standing.values() for tier in standing.short)
        )
        tiers = {
            key: (standing, tuple(tier for tier, need in standing.needs.items() if need.nodes & nodes))
            for key, standing in self._standing.items()
        }
        return {key: (standing, shared) for key, (standing, shared) in tiers.items() if shared}

    def _rooms(self, competitors: frozenset[Key]) -> list[Room]:
        """Nodes with what is free on them once the stages of these pipelines are thought away."""
        rooms = []
        nodes = self._view.nodes()
        for node in nodes:
            name = node["metadata"]["name"]
            free = amounts((node.get("status") or {}).get("allocatable"))
            for pod in self._view.pods_on(name):
                ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
                if ended or _stage_of(pod) in competitors:
                    continue
                free["pods"] = free.get("pods", 0.0) - 1
                for resource, asked in pod_requests(pod).items():
                    free[resource] = free.get(resource, 0.0) - float(asked)
            rooms.append(Room(name, free))
        return rooms

    def _reach(self, tiers: Mapping[str, TierState]) -> dict[str, int]:
        """Slots of each tier, what pipelines hold that make claims included."""
        nodes = self._view.nodes()
        pods = self._view.pods_by_node(nodes)
        return {
            name: capacity(nodes, pods, placement_of(state.spec), is_own=self._is_claimed).slots
            for name, state in tiers.items()
        }

    def _is_claimed(self, pod: Object) -> bool:
        return _stage_of(pod) in self._standing


def _settle(
    contested: Mapping[Key, tuple[_Standing, tuple[str, ...]]], rooms: Sequence[Room], before: Mapping[Key, Grant]
) -> _Settled:
    """Runs beside the planning loop: all that it looks at stays as it is, and ``Kept`` may be shared."""
    # HiGHS takes 10 MB of memory: only where pipelines do compete.
    from splitplane.planner.highs import solve

    started = time.perf_counter()
    claims = {
        key: Claim(
            pipeline="/".join(key), priority=standing.priority, needs={tier: standing.needs[tier] for tier in tiers},
            offers=standing.offers(tiers), before=before[key].replicas if key in before else {},
        )
        for key, (standing, tiers) in contested.items()
    }  # fmt: skip
    settled = arbitrate(list(claims.values()), rooms, solve)
    seconds = time.perf_counter() - started
    grants = _grants(claims, settled)
    record = _record(claims, rooms, settled) if grants != before else ""
    return _Settled(grants, len(claims), len(rooms), settled.gap, seconds, record)


def _record(claims: Mapping[Key, Claim], rooms: Sequence[Room], settled: Settlement) -> str:
    line = dump_settling(list(claims.values()), rooms, settled)
    return line if len(line) <= _MOST_RECORDED else f"not recorded, as that takes {len(line)} bytes"


def _with_slots(seen: Snapshot, slots: Mapping[str, int]) -> Snapshot:
    """As if a pipeline had all these slots to itself."""
    return replace(
        seen,
        tiers=tuple(
            replace(each, slots=slots[each.name], granted=None) if each.name in slots else each for each in seen.tiers
        ),
    )


def _needs(tiers: Mapping[str, TierState]) -> dict[str, Need]:
    return {
        name: Need(tuple(sorted(placement_of(state.spec).requests.items())), frozenset(state.capacity.ready))
        for name, state in tiers.items()
        if state.capacity.ready
    }


def _stage_of(pod: Object) -> Key | None:
    labels = labels_of(pod)
    if labels.get(COMPONENT_LABEL) != "stage":
        return None
    return pod["metadata"].get("namespace", ""), labels.get(PIPELINE_LABEL, "")


def _grants(claims: Mapping[Key, Claim], settled: Settlement) -> dict[Key, Grant]:
    """Grants by pipeline; none at all where everybody may have its first wish."""
    found = {}
    by_priority = sorted(claims.items(), key=lambda item: (-item[1].priority, item[0]))
    for (key, claim), granted in zip(claims.items(), settled.granted, strict=True):
        asked = claim.offers[0].replicas if claim.offers else {}
        less = [
            f"{tier}: {granted[tier]} of {count} replicas" for tier, count in asked.items() if granted[tier] < count
        ]
        why = ""
        if less:
            others = named([other for name, other in by_priority if name != key])
            why = f"{'; '.join(less)}, as it shares nodes with {others}; its own priority is {claim.priority}"
        found[key] = Grant(granted, why)
    return found if any(grant.why for grant in found.values()) else {}
