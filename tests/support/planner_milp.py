"""Planning one pipeline as a mixed integer linear programme, solved by HiGHS: what the planner is compared with.

Linear it can only be where latency is a sum, so arrivals are a metronome's and service is constant: nobody waits, and
replicas only have to carry the load. A request is a unit of flow from the gateway through (tier, cut) to the answer.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from splitplane.planner.context import Context
from splitplane.planner.options import LOSS_STEP, loss_steps
from splitplane.planner.stations import GIB, codec_seconds

Place = tuple[str, int, bool]
"""A tier, a cut, and whether the tier has run anything yet."""


@dataclass(frozen=True, slots=True)
class Arc:
    """A step of a request: ``work`` adds to the service of stages by tier, ``seconds`` to the latency in all."""

    source: Place
    target: Place
    seconds: float
    work: tuple[tuple[str, float], ...] = ()
    cost: float = 0.0
    loss: int = 0


@dataclass(frozen=True, slots=True)
class Optimum:
    """The least cost per hour, and the seconds of CPU that HiGHS took to find it; building the programme is extra."""

    cost: float
    seconds: float
    variables: int


def cheapest(context: Context, *, p95: float, loss: float) -> Optimum:
    """The cheapest plan within limits on latency and accuracy loss. Raises ``ValueError`` where there is none."""
    arcs = list(_arcs(context))
    sites = list(context.sites.values())
    places = {
        place: row for row, place in enumerate(dict.fromkeys(p for arc in arcs for p in (arc.source, arc.target)))
    }
    count = len(arcs) + len(sites)
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []

    def put(row: int, column: int, value: float) -> None:
        rows.append(row)
        columns.append(column)
        values.append(value)

    for column, arc in enumerate(arcs):
        put(places[arc.source], column, 1.0)
        put(places[arc.target], column, -1.0)
    balance = np.zeros(len(places))
    balance[places[_START]], balance[places[_END]] = 1.0, -1.0
    first = len(places)
    for column, arc in enumerate(arcs):
        put(first, column, arc.seconds)
        put(first + 1, column, float(arc.loss))
        for tier, seconds in arc.work:
            put(first + 2 + [site.name for site in sites].index(tier), column, seconds * context.rate)
    for place, _ in enumerate(sites):
        put(first + 2 + place, len(arcs) + place, -context.policy.max_utilization)
    total = first + 2 + len(sites)
    low = np.concatenate([balance, np.full(total - first, -np.inf)])
    high = np.concatenate([balance, [p95, round(loss / LOSS_STEP)], np.zeros(len(sites))])
    costs = np.array([*(arc.cost for arc in arcs), *(site.price for site in sites)])
    matrix = coo_matrix((values, (rows, columns)), shape=(total, count)).tocsr()
    upper = np.array([*(1.0 for _ in arcs), *(float(site.high) for site in sites)])
    started = time.process_time()
    result = milp(
        costs, constraints=LinearConstraint(matrix, low, high), integrality=np.ones(count),
        bounds=Bounds(np.zeros(count), upper), options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    seconds = time.process_time() - started
    if not result.success:
        raise ValueError(result.message)
    return Optimum(float(result.fun), seconds, count)


_START: Place = ("", 0, False)
_END: Place = ("", 1, False)


def _arcs(context: Context) -> Iterator[Arc]:
    """Every step that a request may take, without links that would be too busy."""
    sites, end = context.sites, context.profile.segments
    order = [name for name in context.order if name in sites]
    for name in order:
        site = sites[name]
        prefix = np.array(site.device.prefix_seconds) * site.correction
        for cut in range(end):
            seconds = float(prefix[cut + 1] - prefix[cut])
            for begun in (False, True):
                yield Arc((name, cut, begun), (name, cut + 1, True), seconds, ((name, seconds),))
        overhead = site.overhead_seconds
        entering = 0.0 if name == context.gateway else _crossing(context, context.gateway, name, 0, 0)
        if entering is not None:
            spend = 0.0 if name == context.gateway else _spend(context, context.gateway, name, 0, 0)
            yield Arc(_START, (name, 0, False), entering + overhead, ((name, overhead),), spend)
        yield Arc((name, end, True), _END, 0.0)
    for place, source in enumerate(order):
        for target in order[place + 1 :]:
            encode, decode = codec_seconds(context, sites[source])[0], codec_seconds(context, sites[target])[1]
            for cut, codec in zip(context.options.cut.tolist(), context.options.codec.tolist(), strict=True):
                link = _crossing(context, source, target, cut, codec)
                if link is not None:
                    out, into = float(encode[codec, cut]), float(decode[codec, cut])
                    into += sites[target].overhead_seconds
                    yield Arc(
                        (source, cut, True), (target, cut, False), link + out + into,
                        ((source, out), (target, into)), _spend(context, source, target, cut, codec),
                        int(loss_steps(context.table.loss[codec, cut])),
                    )  # fmt: skip


def _crossing(context: Context, source: str, target: str, cut: int, codec: int) -> float | None:
    """Seconds on the link there and back; ``None`` where it would be too busy."""
    there, back = context.wires[source, target], context.wires[target, source]
    times = float(context.table.sent[codec, cut]) / there.bandwidth, context.answer_bytes / back.bandwidth
    if max(times) * context.rate > context.policy.max_utilization:
        return None
    return sum(times) + there.delay + back.delay


def _spend(context: Context, source: str, target: str, cut: int, codec: int) -> float:
    out = float(context.table.sent[codec, cut]) * context.tiers[source].egress_price_per_gib
    back = context.answer_bytes * context.tiers[target].egress_price_per_gib
    return (out + back) * context.rate * 3600.0 / GIB
