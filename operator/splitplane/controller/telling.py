"""Telling the user: the status block, conditions, and events, each when it says something new."""

import time
from collections.abc import Iterable, Sequence

from splitplane.adapters.cluster import Cluster, Conflict
from splitplane.adapters.kinds import PIPELINE
from splitplane.api.statuses import DECISIONS
from splitplane.controller import statuses
from splitplane.controller.arbitrating import Arbiter
from splitplane.controller.conditions import Facts
from splitplane.controller.naming import gateway_name
from splitplane.controller.objects import Object, key_of
from splitplane.controller.rounds import Memory, Round
from splitplane.controller.switching import Note
from splitplane.controller.telemetry import Telemetry
from splitplane.controller.view import View
from splitplane.domain.times import timestamp

_OBSERVED_EVERY_SECONDS = 10.0


class Telling:
    """Writes what is known of a pipeline where its user looks."""

    def __init__(self, *, cluster: Cluster, view: View, telemetry: Telemetry, arbiter: Arbiter) -> None:
        self._cluster = cluster
        self._view = view
        self._telemetry = telemetry
        self._arbiter = arbiter

    async def tell(self, this: Round, memory: Memory, *, name: str) -> None:
        """Write the status if it says something new, and events for what has turned. ``name`` is the ModelProfile's.

        Of two operators only the one whose status was taken announces it.
        """
        pipeline, key = this.pipeline, this.key
        gateway = self._view.deployments_of(key, "gateway").get(gateway_name(pipeline.metadata.name))
        measured = this.metrics.of(key)
        for note in this.notes:
            if note.reason == "SwitchRolledBack":
                entry = {
                    "time": timestamp(this.now), "action": "RollBack", "reason": note.reason,
                    "message": note.message[:4096],
                }  # fmt: skip
                this.entries.append(entry)
        memory.untold = [*memory.untold, *this.entries][-DECISIONS:]
        decisions = this.decisions
        for entry in memory.untold:
            if entry not in decisions:  # it is there already where only the answer to its write was lost
                decisions = statuses.with_decision(decisions, entry)
        facts = Facts(
            observed=this.observed,
            control=this.control,
            decision=memory.decision,
            gateway_ready=bool(((gateway or {}).get("status") or {}).get("readyReplicas")),
            metrics_failure=this.metrics.failure,
            arrival_rate=measured.arrival_rate,
            p95=measured.p95_seconds,
            problems=tuple(this.problems),
            waiting=tuple(this.waiting),
            suspended=pipeline.spec.suspend,
            grant=self._arbiter.grant(key),
            estimates=this.estimates,
            limits=this.limits,
        )
        before = this.body.get("status") or {}
        current = memory.profile if self._view.profile((key[0], name)) is not None else None
        served = this.control.active.model if this.control.active else ""
        status = statuses.build(
            pipeline, before, facts, profile_name=name, profile_known=current is not None,
            cut_names=[cut.name for cut in current[1].cuts] if current is not None and served == name else [],
            decisions=decisions, now=this.now,
        )  # fmt: skip
        await self.write(this.body, memory, status, this.notes, now=this.now)

    async def write(
        self, body: Object, memory: Memory, status: Object, notes: Iterable[Note], *, now: float
    ) -> None:  # fmt: skip
        """Write the ``status`` of the pipeline ``body`` if it says something new, and events."""
        before = body.get("status") or {}
        for note in notes:
            await self._cluster.create_event(body, type=note.type, reason=note.reason, message=note.message)
        if not _worth_writing(before, status, elapsed=time.monotonic() - memory.status_at):
            memory.untold = []
            await self._announce(body, memory, before.get("conditions") or (), now=now)
            return
        namespace, name = key_of(body)
        try:
            written = await self._cluster.patch_status(
                PIPELINE, name, namespace, status, resource_version=body["metadata"]["resourceVersion"]
            )
        except Conflict:
            self._telemetry.lost_races.inc()
            self._view.forget("InferencePipeline", (namespace, name))
            return
        memory.status_at, memory.untold = time.monotonic(), []
        self._view.remember(written)
        await self._announce(body, memory, status["conditions"], now=now)

    async def _announce(self, body: Object, memory: Memory, conditions: Sequence[Object], *, now: float) -> None:
        """Events for conditions that turned, or are bad for another reason than before."""
        before = (body.get("status") or {}).get("conditions") or ()
        for item in memory.announcements.due(before, conditions, now=now):
            await self._cluster.create_event(body, type=item.type, reason=item.reason, message=item.message)
            memory.announcements.tell(item, now=now)


def _worth_writing(before: Object, status: Object, *, elapsed: float) -> bool:
    """Whether the status says something new; observed numbers alone are written now and then only."""
    now = _without_nothing(status)
    if now == {key: value for key, value in before.items() if key in status}:
        return False
    return elapsed >= _OBSERVED_EVERY_SECONDS or _lasting(now) != _lasting(before)


def _without_nothing(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nothing(item) for item in value]
    return value


_OBSERVED = frozenset({
    "observedP95Milliseconds", "requestsPerSecond", "costPerThousandRequests", "predictedP95Milliseconds",
    "maxRatePerSecond", "costPerHour", "message", "slo", "recommendation", "links",
})  # fmt: skip


def _lasting(value: object) -> object:
    """A status without numbers and texts that change all the time."""
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in _OBSERVED}
    if isinstance(value, list | tuple):
        return [_lasting(item) for item in value]
    return value
