"""Many pipelines that ask for more than the nodes have, made from a seed."""

import random

from splitplane.planner.claims import Claim, Need, Offer, Room

SIZES = ((1.0, 2.0), (1.0, 4.0), (2.0, 4.0), (0.5, 1.0), (1.5, 2.5), (4.0, 8.0), (0.25, 1.0), (3.0, 3.0))
"""Cores and GiB of a replica."""


def scarce(pipelines: int, nodes: int, *, seed: int = 1, priorities: int = 1) -> tuple[list[Claim], list[Room]]:
    """Claims for about twice of what there is, on nodes of several sizes that others use, too; two in three may take
    half of the nodes only."""
    rng = random.Random(seed)
    rooms = [
        Room(f"node-{number}", {"cpu": rng.choice((4.0, 8.0, 16.0)) - rng.choice((0.0, 0.5, 1.0)),
                                "memory": rng.choice((16.0, 32.0)) * 2**30, "pods": 110.0})
        for number in range(nodes)
    ]  # fmt: skip
    everywhere = frozenset(room.name for room in rooms)
    zones = [everywhere, *(frozenset(room.name for room in rooms[half::2]) for half in (0, 1))]
    claims = []
    for number in range(pipelines):
        cores, gib = rng.choice(SIZES)
        need = Need((("cpu", cores), ("memory", gib * 2**30)), rng.choice(zones))
        most = rng.randint(1, 5)
        offers = [
            Offer({"edge": count}, min(1.0, count / most * rng.uniform(0.8, 1.1)), count >= most, count * 0.05,
                  behind=1.0 - count / most)
            for count in range(most, 0, -1)
        ]  # fmt: skip
        if rng.random() < 0.5:
            offers.append(Offer({}, rng.uniform(0.2, 1.0), rng.random() < 0.3, 0.6, behind=rng.random()))
        claims.append(Claim(f"pipeline-{number}", rng.randrange(priorities), {"edge": need}, tuple(offers)))
    return claims, rooms
