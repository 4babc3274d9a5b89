"""Each request of a replay by itself: an event simulation of links, stages and switches, beside the formulas.

What ``serving`` tells of a bin is what the planner's own formulas say of it, so a mistake of theirs would be seen
nowhere. Here requests meet at stages and on links, first come, first served; a pool of replicas serves from one queue,
and computes together what waits where the pipeline lets it.
Requests are admitted at the gateway, each on the route of the plan that serves then: one that was admitted before a
switch ends on the old plan. Plans that keep the same range resident share its replicas.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

import numpy as np

from splitplane.domain.plans import Plan, Stage
from splitplane.planner.arrays import Array, Ints
from splitplane.planner.context import Context, Direction
from splitplane.planner.stations import stage_seconds, together
from splitplane.simulation.replaying import SWITCH_SECONDS, Ground, Metrics, switched
from splitplane.simulation.serving import MOST_WAITING

Pool = tuple[str, int, int, str]
"""A tier, the segments that its replicas keep resident, and the variant of the model that they are of."""
Station = Pool | Direction
Needs = dict[Station, tuple[float, float, int]]
"""What a request of a plan needs: mean seconds at each pool, bytes on each link. At a pool also the share of it that
those that are computed together take but once, and how many these are at most."""


_NONE = (0.0, 0.0, 1)


@dataclass(frozen=True, slots=True)
class Responses:
    """Of single requests: the share within the limit, p95 in seconds (infinite where one in twenty was turned away),
    and the share of those turned away because too many waited."""

    within: float
    p95: float
    refused: float


def by_request(metrics: Metrics, *, seed: int = 1) -> Responses:
    """Replay the plans that a strategy held.

    Raises ``ValueError`` where requests are paid by the use, leave early, or come back to a tier.
    """
    ground = metrics.ground
    context, limit = ground.context, ground.scenario.policy.max_p95_seconds
    if context.reach is not None or any(stage.pay_per_use for plan in metrics.plans for stage in plan.stages):
        raise ValueError("--events goes without --exit and --pay-per-use: requests pass all stages, on replicas")
    if any(plan.revisits for plan in metrics.plans):
        raise ValueError("--events goes without --allow-return: requests pass each tier once")
    rng = np.random.default_rng(seed)
    came = _arrivals(ground.rates, ground.width, context.arrival_scv, rng)
    ways = {plan: _needs(context, plan) for plan in metrics.plans}
    served = [plan if plan is not None and ways[plan] else None for plan in metrics.held]
    plan_of = _serving(ground, served, list(ways), came)
    now = np.where(plan_of >= 0, came, np.inf)
    for station in _stations(context, [way for way in ways.values() if way]):
        needs = np.array([*(way.get(station, _NONE) if way else _NONE for way in ways.values()), _NONE])[plan_of]
        at = np.flatnonzero((needs[:, 0] > 0.0) & np.isfinite(now))
        at = at[np.argsort(now[at], kind="stable")]
        amount, fixed, most = needs[at].T
        if len(station) == 4:
            device = context.of(station[3]).sites[station[0]].device
            service = amount * _spread(device.time_cv, len(at), rng)
            sizes = _sizes(ground, served, station)
            now[at] = through_pool(now[at], service, sizes, fixed=fixed, most=most.astype(np.int64))
        else:
            wire = context.wires[station]
            rates = ground.links.get(station, np.array([wire.bandwidth]))
            now[at] = through_link(now[at], amount, rates, ground.width) + wire.delay
    seconds = np.sort(now - came)
    answered = np.isfinite(seconds)
    return Responses(
        within=float(np.mean(answered if limit is None else seconds <= limit)),
        p95=float(seconds[int(0.95 * len(seconds))]),
        refused=1.0 - float(answered.mean()),
    )


def _arrivals(rates: Array, width: float, scv: float, rng: np.random.Generator) -> Array:
    """When requests come, in seconds: gaps of this variability at rate 1, in a time that runs as fast as the rate."""
    load = np.concatenate([[0.0], np.cumsum(rates * width)])
    count = int(load[-1] + 10.0 * np.sqrt(load[-1] * max(1.0, scv)) + 10.0)
    if scv <= 1.0:
        gaps = np.ones(count) if scv == 0.0 else rng.standard_gamma(1.0 / scv, count) * scv
    else:  # two exponentials with balanced means
        share = 0.5 * (1.0 + np.sqrt((scv - 1.0) / (scv + 1.0)))
        fast = rng.random(count) < share
        gaps = rng.standard_exponential(count) / np.where(fast, 2.0 * share, 2.0 * (1.0 - share))
    at = np.cumsum(gaps)
    return np.asarray(np.interp(at[at < load[-1]], load, np.arange(len(load)) * width))


def _serving(ground: Ground, held: Sequence[Plan | None], plans: Sequence[Plan], came: Array) -> Ints:
    """The place in ``plans`` of the one that each request is admitted to; -1 where none serves."""
    by_bin = np.array([-1 if plan is None else plans.index(plan) for plan in held])
    place = np.minimum((came / ground.width).astype(np.int64), len(held) - 1)
    into_bin = came - place * ground.width
    return np.where(into_bin < _starts(ground, held)[place], by_bin[place - 1], by_bin[place])


def _starts(ground: Ground, held: Sequence[Plan | None]) -> Array:
    """Seconds into each bin at which its plan begins to serve; until then the one before does."""
    starts = np.zeros(len(held))
    starts[[place for place, moved in switched(held) if moved]] = min(SWITCH_SECONDS, ground.width)
    return starts


def _needs(context: Context, plan: Plan) -> Needs | None:
    """``None`` where a tier or a link is missing."""
    context = context.of(plan.variant)
    needs: Needs = {}
    table = context.table
    codecs = [table.codecs.index(codec) for codec in ("fp32", *plan.codecs)]
    tiers = (context.gateway, *(stage.tier for stage in plan.stages))
    if any(stage.tier not in context.sites for stage in plan.stages):
        return None
    for place, stage in enumerate(plan.stages):
        hop = tiers[place], stage.tier
        if hop[0] != hop[1]:
            needs[hop] = float(table.sent[codecs[place], stage.first]), 0.0, 1
            needs[stage.tier, tiers[place]] = context.answer_bytes, 0.0, 1
        arrives = np.array(codecs[place : place + 1]) if place > 0 else None
        leaves = np.array(codecs[place + 1 : place + 2]) if place + 1 < len(plan.stages) else None
        site, first, last = context.sites[stage.tier], np.array([stage.first]), np.array([stage.last])
        seconds = stage_seconds(context, site, first, last, decoded=arrives, encoded=leaves)
        batch = together(context, site, first, last, seconds)
        fixed, most = (0.0, 1) if batch is None else (float(batch.fixed[0]), int(batch.most[0]))
        needs[_pool(plan, stage)] = float(seconds[0]), fixed, most
    known = all(need in context.wires for need in needs if len(need) == 2)
    return needs if known else None


def _pool(plan: Plan, stage: Stage) -> Pool:
    return stage.tier, stage.resident_first, stage.resident_last, plan.variant


def _stations(context: Context, ways: Sequence[Needs]) -> list[Station]:
    """In an order in which every request passes them: outwards through the tiers, and back over the links."""
    rank = {tier: place for place, tier in enumerate(context.order)}

    def turn(station: Station) -> tuple[int, int]:
        if len(station) == 4:
            return rank[station[0]], 1
        source, target = rank[station[0]], rank[station[1]]
        return (target, 0) if source < target else (2 * len(rank) - source, 0)

    return sorted({station for way in ways for station in way}, key=lambda each: (turn(each), each))


def _spread(cv: float, count: int, rng: np.random.Generator) -> Array | float:
    """Service times around a mean of 1, gamma distributed."""
    return rng.standard_gamma(1.0 / cv**2, count) * cv**2 if cv > 0.0 else 1.0


def _sizes(ground: Ground, held: Sequence[Plan | None], pool: Pool) -> list[tuple[float, int]]:
    """From which second on a pool has so many replicas. One that no plan needs any more drains."""
    sizes: list[tuple[float, int]] = []
    begins = np.arange(len(held)) * ground.width + _starts(ground, held)
    for place, plan in enumerate(held):
        for stage in plan.stages if plan else ():
            if plan and _pool(plan, stage) == pool:
                count = min(stage.replicas, ground.context.sites[stage.tier].high)
                if not sizes or sizes[-1][1] != count:
                    sizes.append((float(begins[place]) if sizes else 0.0, count))
    return sizes


def through_pool(
    reached: Array, service: Array, sizes: Sequence[tuple[float, int]], *, fixed: Array, most: Ints
) -> Array:
    """When requests leave replicas with one queue, which they reach in this order; infinite for those turned away
    because ``MOST_WAITING`` wait.

    A free replica takes what waits, up to the ``most`` of the first of these; ``n`` of them take
    ``fixed + (1 - fixed) n`` times that one's ``service``. ``sizes`` are (second, replicas from then on).
    """
    free = [0.0] * sizes[0][1]
    changes = deque(sizes[1:])
    came, alone, once, largest = (column.tolist() for column in (reached, service, fixed, most))
    left = np.full(len(came), np.inf)
    line: deque[int] = deque()
    after = 0
    while line or after < len(came):
        if not line:
            line.append(after)
            after += 1
        first = line[0]
        start = max(came[first], free[0])
        if changes and changes[0][0] <= start:
            at, count = changes.popleft()
            while len(free) < count:
                heappush(free, at)
            while len(free) > count:
                heappop(free)  # an idle one goes before one that works
            continue
        while after < len(came) and came[after] <= start:
            if len(line) < MOST_WAITING:
                line.append(after)
            after += 1
        size = min(len(line), largest[first])
        end = start + alone[first] * (once[first] + (1.0 - once[first]) * size)
        for _ in range(size):
            left[line.popleft()] = end
        heapreplace(free, end)
    return left


def through_link(reached: Array, sent: Array, bandwidths: Array, width: float) -> Array:
    """When the last byte of each request has left a link that they reach in this order, at bandwidths of bins (of
    ``width`` seconds; the last one goes on); infinite for those turned away because too many wait."""
    rates, last, free = bandwidths.tolist(), len(bandwidths) - 1, 0.0
    passed = [0.0, *np.cumsum(bandwidths * width)[:-1].tolist()]  # bytes by the begin of each bin
    starts: deque[float] = deque()
    left = np.empty(len(reached))
    for place, (now, size) in enumerate(zip(reached.tolist(), sent.tolist(), strict=True)):
        while starts and starts[0] <= now:
            starts.popleft()
        if len(starts) >= MOST_WAITING:
            left[place] = np.inf
            continue
        start = max(now, free)
        if start > now:
            starts.append(start)
        begun = min(last, int(start / width))
        bytes_by = passed[begun] + (start - begun * width) * rates[begun] + size
        ended = max(begun, bisect_right(passed, bytes_by) - 1)
        left[place] = free = max(start, ended * width + (bytes_by - passed[ended]) / rates[ended])
    return left
