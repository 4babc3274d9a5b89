"""Which cuts are not worth keeping.

A cut is dominated if an earlier interior cut and a later cut both carry fewer bytes: for latency alone one of them is
better whichever side should do more. It is dropped if they are near, so that they balance work and memory as well as it
does (the insides of attention and of feed-forward blocks), or if they carry far less. One that an input crosses as it
is dominates none that none does, for the input may be private.
"""

from collections.abc import Callable, Sequence

from splitplane.model.flow import Place

MAX_CUTS = 256
"""A deeper model gets its cuts thinned out evenly by heavy operations."""

NEAR = 1 / 4
FAR_TIMES = 4
"""A cut that carries more than one before it and one after it is dropped where at most this share of the model's work
lies between those two, and, however much lies between, where it carries at least so many times what each of them does.
"""


def drop_dominated(
    interior: Sequence[Place], last: Place, done: Sequence[float], shows_input: Callable[[Place], bool]
) -> list[Place]:  # fmt: skip
    """``done[p]`` is the share of all work before position ``p``."""
    kept = []
    shown = list(map(shows_input, interior))
    for index, place in enumerate(interior):
        alike = [other for other, shows in zip(interior[:index], shown, strict=False) if shown[index] or not shows]
        earlier = [other for other in alike if other.bytes < place.bytes]
        later = [other for other in (*interior[index + 1 :], last) if other.bytes < place.bytes]
        near = earlier and later and done[later[0].position] - done[earlier[-1].position] <= NEAR
        large = all(side and FAR_TIMES * min(each.bytes for each in side) <= place.bytes for side in (earlier, later))
        repeated = any(other.nodes == place.nodes for other in (*interior[:index], last))
        if not near and not large and not repeated:
            kept.append(place)
    return kept


def thin_out(places: list[Place], heavy: Sequence[int]) -> list[Place]:
    """Merge the two neighbouring segments with the fewest heavy operations until at most ``MAX_CUTS`` are left."""
    places = list(places)
    while len(places) > MAX_CUTS:
        merged = [
            sum(left.position <= position < right.position for position in heavy)
            for left, right in zip(places, places[2:], strict=False)
        ]
        del places[merged.index(min(merged)) + 1]
    return places
