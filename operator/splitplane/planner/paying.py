"""Replicas or pay-per-use: from which load on a replica that is always there costs less than what it keeps from others.

Requests take the first replica that is free, so each further one serves what finds all before it busy: an ever smaller
and burstier remainder. It pays for itself from the rate on at which that would cost as much by the use (LIBRA, arXiv
2104.05491; SERFLOW, arXiv 2510.27182). What is left beyond the last one that pays is the part to pay for by the use.
"""

import math
from dataclasses import dataclass

import numpy as np

from splitplane.domain.plans import Plan
from splitplane.domain.snapshots import PayPerUse
from splitplane.planner.arrays import Array
from splitplane.planner.context import Context
from splitplane.planner.exits import Seen, seen
from splitplane.planner.queueing import overflow_share
from splitplane.planner.stations import use_cost

_HALVINGS = 60
_LOWEST_RATE, _HIGHEST_RATE = 1e-6, 1e9


@dataclass(frozen=True, slots=True)
class Indifference:
    """Of a stage: requests per second from which its first, second, ... replica pays for itself, infinite where none
    does, and the share of requests that would be paid by the use at the rate of now with the stage's replicas."""

    tier: str
    rates: tuple[float, ...]
    share: float


def indifference(context: Context, plan: Plan) -> tuple[Indifference, ...]:
    """For each stage of the plan whose tier offers pay-per-use and has a price."""
    codecs = [context.table.codecs.index(codec) for codec in plan.codecs]
    found = []
    for place, stage in enumerate(plan.stages):
        site = context.sites.get(stage.tier)
        if site is None or site.tier.pay_per_use is None or math.isnan(site.price):
            continue
        here = seen(
            context, site, np.array([stage.first]), np.array([stage.last]),
            decoded=np.array([codecs[place - 1]]) if place > 0 else None,
            encoded=np.array([codecs[place]]) if place < len(codecs) else None,
        )  # fmt: skip
        terms, scv, counts = site.tier.pay_per_use, context.arrival_scv, np.arange(1.0, site.high + 1.0)
        low, high = np.full(len(counts), _LOWEST_RATE), np.full(len(counts), _HIGHEST_RATE)
        never = _saved(terms, counts, here, high, scv) < site.price
        for _ in range(_HALVINGS):
            middle = np.sqrt(low * high)
            pays = _saved(terms, counts, here, middle, scv) >= site.price
            low, high = np.where(pays, low, middle), np.where(pays, middle, high)
        share = overflow_share(np.array([float(stage.replicas)]), context.rate * here.share * here.service, scv)
        rates = np.where(never, np.inf, high)
        found.append(Indifference(stage.tier, tuple(rates.tolist()), float(share[0]) if stage.pay_per_use else 0.0))
    return tuple(found)


def _saved(terms: PayPerUse, counts: Array, here: Seen, rate: Array, scv: float) -> Array:
    """Money per hour that the last of so many replicas keeps from being spent by the use, at these rates."""
    come = rate * here.share
    without, with_it = (overflow_share(each, come * here.service, scv) for each in (counts - 1.0, counts))
    return (without - with_it) * use_cost(terms, here.service, come)
