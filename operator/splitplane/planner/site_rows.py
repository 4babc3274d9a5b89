"""What a site can run: all on its own nodes, split with the shared tier, or all there, as columns.

A site's own stages and links queue by themselves; the wait in the shared pool is given to ``p95`` from outside, as it
depends on what all sites do.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from splitplane.domain.snapshots import Mode
from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.batching import Together
from splitplane.planner.columns import joined
from splitplane.planner.context import Context
from splitplane.planner.layouts import Layout
from splitplane.planner.lines import TRICKLE, Line, build_lines
from splitplane.planner.queueing import Cumulants, blend, coupling_of, damp, delay, percentile_95, service_third
from splitplane.planner.stations import egress_cost, round_cost, stage_seconds, together

_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class SiteRows:
    """Rows of sites: ``cut`` is where the pool takes over (0: at once), if the row is ``pooled``.

    ``cost`` is without the pool, ``load`` the pool's replicas that the row keeps busy, ``pool_seconds`` a request's
    time there. ``fixed`` and ``most`` say how such requests are computed together (``batching.Together``), and
    ``batched_load`` and ``batched_coupling`` stand for ``load`` and ``coupling`` where they are. ``total`` and
    ``largest`` are cumulants of the waits at the site and on its link, ``service`` those of what is no wait.
    ``capacity`` is the highest rate that site and link bear.
    """

    site: Ints
    cut: Ints
    codec: Ints
    replicas: Ints
    pooled: Bools
    cost: Array
    load: Array
    batched_load: Array
    pool_seconds: Array
    fixed: Array
    most: Ints
    capacity: Array
    total: Array
    largest: Array
    service: Array
    coupling: Array
    batched_coupling: Array
    leak: Array
    leak_measured: Bools
    loss: Array
    loss_measured: Bools

    def __len__(self) -> int:
        return len(self.site)

    def where(self, places: Ints) -> "SiteRows":
        return SiteRows(*(getattr(self, field.name)[..., places] for field in fields(self)))

    def together(self) -> "SiteRows":
        """The rows as they are where the pool computes their requests together."""
        return replace(self, load=self.batched_load, coupling=self.batched_coupling)

    def p95(self, waits: Cumulants | None) -> Array:
        """Seconds, while these are the cumulants of the wait in the pool (``None``: as if there were none)."""
        return percentile_95(*self._cumulants(waits))

    def response(self, waits: Cumulants | None) -> tuple[float, float]:
        """Mean and p95 of the only row."""
        mean, variance, third = self._cumulants(waits)
        return float(mean[0]), float(percentile_95(mean, variance, third)[0])

    def _cumulants(self, waits: Cumulants | None) -> tuple[Array, Array, Array]:
        found = []
        for k in range(3):
            there = np.where(self.pooled, 0.0 if waits is None else waits[k], 0.0)
            total, largest = self.total[k] + there, np.maximum(self.largest[k], there)
            found.append(self.service[k] + blend(total, largest, self.coupling))
        return found[0], found[1], found[2]


def rows_of(context: Context, shared: str, site: int) -> SiteRows:
    """All rows of one site that trust, memory, links, prices and the limits on leak and accuracy allow, and whose own
    stations bear the load. Lines over further tiers are left out: they share nothing."""
    known: tuple[tuple[str, ...], ...] = ((context.gateway,), (context.gateway, shared), (shared,))
    fixed = context.policy.fixed if context.policy.mode is Mode.FIXED else None
    if fixed is not None:
        known = (tuple(tier for tier, _, _ in fixed.stages),)
    rows = [_rows(context, line, shared, site) for line in build_lines(context, TRICKLE) if line.tiers in known]
    found = joined([_empty(), *rows])
    if fixed is not None and fixed.codecs:
        cut, codec = fixed.stages[1][1], context.table.codecs.index(fixed.codecs[0])
        found = found.where(np.flatnonzero((found.cut == cut) & (found.codec == codec)))
    return found


def _rows(context: Context, line: Line, shared: str, site: int) -> SiteRows:
    layout = _layout(context, line, shared)
    pooled = line.tiers[-1] == shared
    count, rate, table = len(layout), context.rate, context.table
    zeros = np.zeros(count)
    cost, constant = zeros.copy(), zeros.copy()
    services: list[tuple[Array, float, Array, Together | None]] = []
    pool_seconds = zeros
    grouped: Together | None = None
    cut = np.zeros(count, dtype=np.int64)
    codec = np.full(count, table.codecs.index("fp32"))
    replicas = np.zeros(count, dtype=np.int64)
    pool_cv = 0.0
    leak, loss = zeros, zeros
    measured = np.ones(count, dtype=np.bool_)
    leak_measured, loss_measured = measured, measured
    if len(layout.codecs):
        cut, codec = layout.bounds[1], layout.codecs[0]
        loss, loss_measured = table.loss[codec, cut], table.loss_measured[codec, cut]
    if line.tiers[0] == context.gateway:
        own = context.sites[context.gateway]
        encoded = layout.codecs[0] if layout.codecs else None
        seconds = stage_seconds(context, own, layout.bounds[0], layout.bounds[1], encoded=encoded)
        replicas = layout.replicas[0]
        among = together(context, own, layout.bounds[0], layout.bounds[1], seconds)
        services.append((seconds, own.device.time_cv, replicas.astype(np.float64), among))
        cost = cost + replicas * context.weight(own)
    if pooled:
        far = context.sites[shared]
        decoded = layout.codecs[0] if layout.codecs else None
        pool_seconds = stage_seconds(context, far, layout.bounds[-2], layout.bounds[-1], decoded=decoded)
        grouped = together(context, far, layout.bounds[-2], layout.bounds[-1], pool_seconds, decoded)
        pool_cv = far.device.time_cv
    links = pooled and context.gateway != shared
    if links:
        up, down = context.wires[context.gateway, shared], context.wires[shared, context.gateway]
        sent, answer = table.sent[codec, cut], np.full(count, context.answer_bytes)
        ones = np.ones(count)
        services += [(sent / up.bandwidth, 0.0, ones, None), (answer / down.bandwidth, 0.0, ones, None)]
        constant = constant + up.delay + down.delay
        cost = cost + egress_cost(context, context.gateway, sent, rate) + egress_cost(context, shared, answer, rate)
        if not context.tiers[shared].trusted:
            leak, leak_measured = table.leak[codec, cut], table.leak_measured[codec, cut]
    busy = [
        rate * (seconds if among is None else among.at_least(seconds)) / servers
        for seconds, _, servers, among in services
    ]
    busiest = np.max(busy or [zeros], axis=0)
    able = np.flatnonzero(busiest <= context.policy.max_utilization * (1.0 + _SLACK))
    waits = [
        _felt(
            delay(
                seconds[able],
                np.array(cv**2),
                servers[able],
                rate,
                context.arrival_scv,
                None if among is None else among.where(able),
            )
        )
        for seconds, cv, servers, among in services
    ] or [(zeros[able],) * 3]
    everything = [*((seconds, cv) for seconds, cv, _, _ in services), (pool_seconds, pool_cv)]
    spread = np.sum([(cv * seconds) ** 2 for seconds, cv in everything], axis=0)
    squares = [seconds**2 if among is None else among.of_single(seconds**2) for seconds, _, _, among in services]
    squares.append(pool_seconds**2)
    first = services[0][-1] if services else None
    if links and first is not None:
        squares[-3] = first.of_link_behind(squares[-3])
    square = np.sum(squares, axis=0)
    if grouped is not None:
        squares[-1] = grouped.of_single(squares[-1])
        if links:
            squares[-2] = grouped.of_link_behind(squares[-2])
    batched_square = np.sum(squares, axis=0)
    least = pool_seconds if grouped is None else grouped.at_least(pool_seconds)
    third = np.sum([service_third(seconds, cv**2) for seconds, cv in everything], axis=0)
    mean = constant + np.sum([seconds for seconds, _ in everything], axis=0)
    return SiteRows(
        site=np.full(len(able), site), cut=cut[able], codec=codec[able], replicas=replicas[able],
        pooled=np.full(len(able), pooled), cost=round_cost(cost[able]), load=rate * pool_seconds[able],
        batched_load=rate * least[able], pool_seconds=pool_seconds[able],
        fixed=(zeros if grouped is None else grouped.fixed)[able],
        most=(np.ones(count, dtype=np.int64) if grouped is None else grouped.most)[able],
        capacity=context.policy.max_utilization * rate / np.maximum(busiest[able], 1e-12),
        total=np.sum(waits, axis=0), largest=np.max(waits, axis=0),
        service=np.stack([mean[able], spread[able], third[able]]),
        coupling=coupling_of(spread[able], square[able]),
        batched_coupling=coupling_of(spread[able], batched_square[able]),
        leak=leak[able], leak_measured=leak_measured[able], loss=loss[able], loss_measured=loss_measured[able],
    )  # fmt: skip


def _felt(cumulants: Cumulants) -> Cumulants:
    mean, variance, third = cumulants
    return (mean, *damp(variance, third))


def _layout(context: Context, line: Line, shared: str) -> Layout:
    """The line's rows with every number of replicas at the site, and one in the pool."""
    near = [context.sites[tier] for tier in line.tiers if tier != shared]
    counts = np.arange(near[0].low, near[0].high + 1) if near else np.ones(1, dtype=np.int64)
    row, replicas = (grid.ravel() for grid in np.meshgrid(np.arange(len(line.first)), counts, indexing="ij"))
    ones = np.ones_like(row)
    head, tail = (replicas, ones) if len(line.tiers) == 2 else (ones, replicas)
    return line.layout(context.profile.segments, line.first[row], line.second[row], (head, ones, tail))


def _empty() -> SiteRows:
    """No rows."""
    whole, flags, numbers = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_), np.zeros(0)
    three = np.zeros((3, 0))
    return SiteRows(
        site=whole, cut=whole, codec=whole, replicas=whole, pooled=flags, cost=numbers, load=numbers,
        batched_load=numbers, pool_seconds=numbers, fixed=numbers, most=whole, capacity=numbers, total=three,
        largest=three, service=three, coupling=numbers, batched_coupling=numbers,
        leak=numbers, leak_measured=flags, loss=numbers, loss_measured=flags,
    )  # fmt: skip
