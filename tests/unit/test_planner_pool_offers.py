"""What the sites of a pipeline offer to do with fewer shared replicas, where others want the same nodes."""

from dataclasses import replace

import pytest

from splitplane.domain.measurements import Value
from splitplane.planner.arbitration import arbitrate
from splitplane.planner.claims import Claim, Need, Room
from splitplane.planner.highs import solve
from splitplane.planner.pool_offers import MOST_OFFERS, pool_offers, pool_wish
from splitplane.planner.pooling import Pooling, size_pool
from splitplane.planner.pools import Pool
from tests.support.planner_cases import SNAPSHOT, links, with_tiers
from tests.support.planner_sites import CHEAP, many_sites

LOADED = {
    name: with_tiers(
        replace(SNAPSHOT, links=links(100), arrival_rate=Value(rate), arrival_scv=1.0),
        edge={"min_replicas": 0, "max_replicas": 2, "slots": 2}, cloud={"max_replicas": 40, "slots": 40},
    )
    for name, rate in {"a": 8.0, "b": 12.0, "c": 16.0}.items()
}  # fmt: skip
"""The edge of none bears its load."""


def test_offers_begin_with_what_sites_would_share_and_carry_less_with_fewer_down_to_none():
    first, *fewer = pool_offers(LOADED, CHEAP, "cloud", held=None)
    wanted = size_pool(LOADED, CHEAP, 0.0, shared="cloud", before=Pooling()).pool
    assert wanted is not None
    assert first.replicas == {"cloud": wanted.replicas}
    assert pool_wish(LOADED, CHEAP, "cloud") == wanted.replicas
    assert (first.carried, first.keeps_limits) == (1.0, True)
    counts = [offer.replicas.get("cloud", 0) for offer in fewer]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == 0
    carried = [offer.carried for offer in (first, *fewer)]
    assert carried == sorted(carried, reverse=True)
    assert carried[-1] < 0.5
    assert not any(offer.keeps_limits for offer in fewer)


def test_what_was_granted_before_is_left_out_of_account_and_what_is_held_is_among_the_offers():
    plain = pool_offers(LOADED, CHEAP, "cloud", held=None)
    granted = {name: with_tiers(each, cloud={"granted": 1}) for name, each in LOADED.items()}
    assert pool_offers(granted, CHEAP, "cloud", held=None) == plain
    wanted = plain[0].replicas["cloud"]
    held = pool_offers(LOADED, CHEAP, "cloud", held=Pool(0, 6, wanted))
    assert [offer.held for offer in held] == [True, *(False for _ in held[1:])]


def test_a_pool_that_keeps_its_limits_is_not_left_for_what_may_break_them_and_one_that_breaks_them_has_what_mends():
    calm, busy = (
        {name: replace(each, arrival_rate=Value(load * each.arrival_rate.value)) for name, each in LOADED.items()}
        for load in (0.8, 0.9)
    )
    fewer = pool_offers(calm, CHEAP, "cloud", held=None)[0]
    assert (fewer.replicas, fewer.keeps_limits) == ({"cloud": 3}, True)
    unsure, *_, held = pool_offers(calm, CHEAP, "cloud", held=Pool(0, 6, 4))
    assert (unsure.replicas, unsure.keeps_limits) == ({"cloud": 3}, False)
    assert (held.held, held.keeps_limits) == (True, True)
    more, *others = pool_offers(busy, CHEAP, "cloud", held=Pool(0, 6, 3))
    assert (more.replicas, more.mends) == ({"cloud": 4}, True)
    assert not any(offer.mends for offer in others)


@pytest.mark.parametrize("prefer", ["Cost", "Latency", "Privacy"])
def test_many_sites_make_few_offers_whatever_is_preferred(prefer: str):
    policy = replace(CHEAP, prefer=type(CHEAP.prefer)(prefer))
    found = pool_offers(many_sites(20, seed=2), policy, "cloud", held=Pool(1, 6, 1))
    assert (prefer != "Privacy") < len(found) <= MOST_OFFERS + 1
    assert [offer.replicas for offer in found if not offer.replicas] == [{}]
    assert [offer.replicas.get("cloud") for offer in found if offer.held] == [1]


def test_a_pool_without_a_grant_is_none_and_comes_back_with_one():
    full = size_pool(LOADED, CHEAP, 0.0, shared="cloud", before=Pooling())
    assert full.pool is not None
    none = {name: with_tiers(each, cloud={"granted": 0}) for name, each in LOADED.items()}
    gone = size_pool(none, CHEAP, 1.0, shared="cloud", before=full)
    assert (gone.pool, dict(gone.loads)) == (None, {})
    some = {name: with_tiers(each, cloud={"granted": 2}) for name, each in LOADED.items()}
    assert size_pool(some, CHEAP, 2.0, shared="cloud", before=full).pool == replace(full.pool, replicas=2)
    assert size_pool(LOADED, CHEAP, 3.0, shared="cloud", before=gone).pool == full.pool


def test_sites_that_share_and_a_pipeline_settle_on_what_there_is():
    lame = {name: with_tiers(each, edge={"max_replicas": 0}) for name, each in LOADED.items()}
    ours = pool_offers(lame, replace(CHEAP, raw_input_stays_trusted=False), "cloud", held=None)
    need = Need((("cpu", 1.0),), frozenset({"n"}))
    wanted = ours[0].replicas["cloud"]
    other = tuple(replace(ours[0], replicas={"cloud": n}, carried=n / wanted, keeps_limits=n == wanted)
                  for n in range(wanted, 0, -1))  # fmt: skip
    claims = [Claim("p", 0, {"cloud": need}, ours), Claim("q", 0, {"cloud": need}, other)]
    settled = arbitrate(claims, [Room("n", {"cpu": float(wanted + 1)})], solve)
    taken = [claim.offers[n].replicas.get("cloud", 0) if n < len(claim.offers) else 0
             for claim, n in zip(claims, settled.chosen, strict=True)]  # fmt: skip
    assert sum(taken) <= wanted + 1
    assert all(taken)
