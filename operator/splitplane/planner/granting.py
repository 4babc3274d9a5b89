"""Why each of the claims that were settled together got what it got, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitplane.planner.arbitration import Settlement
from splitplane.planner.claims import Claim, Need, Offer, Room
from splitplane.planner.packing import Packing, Placed

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Granted:
    """What a claim asked for first and got, both replicas by tier. ``offer`` is what was chosen of it, ``None`` where
    it serves nothing; what it ``got`` may be more, where there is room."""

    claim: Claim
    offer: Offer | None
    got: Mapping[str, int]
    nodes: Mapping[str, tuple[str, ...]]
    why: str

    @property
    def asked(self) -> Mapping[str, int]:
        return self.claim.offers[0].replicas if self.claim.offers else {}


def told(claims: Sequence[Claim], rooms: Sequence[Room], settled: Settlement) -> tuple[Granted, ...]:
    """Each claim in its order, with the reason: what of its first wish has room beside what the others got."""
    needs = list(dict.fromkeys(need for claim in claims for need in claim.needs.values()))
    number = {need: place for place, need in enumerate(needs)}
    place_of = {room.name: place for place, room in enumerate(rooms)}
    packing = Packing(rooms, needs)
    placed = [
        # Of two tiers with the same need both names hold all that stands for it.
        [
            Placed(need, tuple(place_of[name] for name in names))
            for need, names in {number[claim.needs[tier]]: names for tier, names in nodes.items()}.items()
        ]
        for claim, nodes in zip(claims, settled.nodes, strict=True)
    ]
    for each in (each for own in placed for each in own):
        packing.put(each)
    users: dict[str, set[int]] = {}
    for place, nodes in enumerate(settled.nodes):
        for name in {name for names in nodes.values() for name in names}:
            users.setdefault(name, set()).add(place)
    found = []
    for place, (claim, chosen) in enumerate(zip(claims, settled.chosen, strict=True)):
        if not claim.offers:
            why = "it has no plan that these nodes would serve"
        elif chosen == 0:
            why = "its first wish"
        else:
            for each in placed[place]:
                packing.give(each)
            room = _room(packing, number, claim)
            for each in placed[place]:
                packing.put(each)
            beside = {
                other for tier in room for name in claim.needs[tier].nodes for other in users.get(name, ())
            } - {place}  # fmt: skip
            why = _why(claim, chosen, room, [claims[other] for other in sorted(beside)])
        offer = claim.offers[chosen] if chosen < len(claim.offers) else None
        got = settled.granted[place] if settled.granted else (offer.replicas if offer else {})
        found.append(Granted(claim, offer, got, settled.nodes[place], why))
    return tuple(found)


def _room(packing: Packing, number: Mapping[Need, int], claim: Claim) -> dict[str, int]:
    """By tier, how many replicas of a claim's first wish have room; none is taken."""
    taken = {
        tier: packing.take_most(need := number[claim.needs[tier]], count, np.flatnonzero(packing.may[need]))
        for tier, count in claim.offers[0].replicas.items()
        if count
    }
    for each in taken.values():
        packing.give(each)
    return {tier: len(each.nodes) for tier, each in taken.items()}


def _why(claim: Claim, chosen: int, room: Mapping[str, int], beside: Sequence[Claim]) -> str:
    short = [
        f"{tier} has room for {room[tier]} of {count} replicas"
        for tier, count in claim.offers[0].replicas.items()
        if room.get(tier, 0) < count
    ]
    if not short:
        return _rather(claim, chosen)
    higher = [each for each in beside if each.priority > claim.priority]
    equal = [each for each in beside if each.priority == claim.priority]
    parts = [f"beside {named(higher)}"] if higher else []
    parts += [f"beside {named(equal)}, with whom all are worth most so"] if equal else []
    return f"{', '.join(short)}{' ' if parts else ''}{' and '.join(parts)}"


def _rather(claim: Claim, chosen: int) -> str:
    """Why something else is worth more than a first wish that would fit."""
    if chosen == len(claim.offers):
        return "its first wish would fit, and was not found in the time that there was"
    first, got = claim.offers[0], claim.offers[chosen]
    if claim.worth(chosen) < claim.worth(0):
        return "its first wish would fit, and was not found in the time that there was"
    runs = got.held and not first.held
    return f"its first wish would fit: {'that is what runs' if runs else 'this is worth as much'}"


def named(claims: Sequence[Claim]) -> str:
    """Claims by name and priority, the first few of many."""
    names = ", ".join(f"{each.pipeline} (priority {each.priority})" for each in claims[:_MOST_NAMED])
    more = len(claims) - _MOST_NAMED
    return f"{names} and {more} more" if more > 0 else names
