"""How long it takes to share nodes among pipelines that want about twice of what there is, and how much that may lose.

Once the claims are given (tests/support/planner_claims.py), in seconds of the wall on one thread. Once they are made
from the offers of the pipelines of benchmarks/planner_fleet.py, all of which were just measured anew, or 5 % of them,
in seconds of CPU.
"""

import random
import statistics
import time
from collections.abc import Sequence

from benchmarks._report import Row, row
from benchmarks.planner_fleet import Pipeline, change, newcomers
from splitplane.planner.arbitration import arbitrate
from splitplane.planner.claims import Claim, Need, Room
from splitplane.planner.highs import solve
from splitplane.planner.offers import offers
from tests.support.planner_claims import SIZES as REPLICAS
from tests.support.planner_claims import scarce

LIMIT_SECONDS = 2.0
SIZES = ((10, 3), (100, 20), (1000, 200))
SEEDS = (1, 2, 3)
CHANGED = 0.05
SHARED = ("edge",)


def main() -> list[Row]:
    rows = []
    for priorities in (1, 4):
        for pipelines, nodes in SIZES:
            seconds, gaps, greedy = [], [], []
            for seed in SEEDS:
                claims, rooms = scarce(pipelines, nodes, seed=seed, priorities=priorities)
                started = time.perf_counter()
                settled = arbitrate(claims, rooms, solve)
                seconds.append(time.perf_counter() - started)
                gaps.append(settled.gap)
                without = arbitrate(claims, rooms, None)
                ours, theirs = (
                    sum(claim.worth(number) for claim, number in zip(claims, each.chosen, strict=True))
                    for each in (settled, without)
                )
                greedy.append(ours / theirs - 1.0)
            name = f"{pipelines} pipelines of {priorities} priorities on {nodes} nodes"
            rows += [
                row(f"arbitration: {name}, slowest of {len(SEEDS)}", max(seconds), "s", LIMIT_SECONDS),
                row(f"arbitration: {name}, largest gap to the bound", max(gaps), ""),
            ]
            if priorities == 1:  # of several, the first counts before all others
                rows.append(row(f"arbitration: {name}, worth more than greedily", statistics.mean(greedy), ""))
    return [*rows, *with_offers()]


def with_offers() -> list[Row]:
    """The largest size again, the offers included."""
    count, nodes = SIZES[-1]
    pipelines, rng = newcomers(count), random.Random(3)
    _, first = _claims(pipelines)
    change(pipelines, CHANGED, rng)
    claims, again = _claims(pipelines)
    rooms = _rooms(claims, nodes)
    started = time.process_time()
    settled = arbitrate(claims, rooms, solve)
    solved = time.process_time() - started
    name = f"arbitration: {count} pipelines"
    return [
        row(f"{name}, making the offers of all", first, "s"),
        row(f"{name}, making them again where {CHANGED:.0%} have changed", again, "s"),
        row(f"{name} on {nodes} nodes, settling these", solved, "s"),
        row(f"{name} on {nodes} nodes, both where {CHANGED:.0%} have changed", again + solved, "s", LIMIT_SECONDS),
        row(f"{name} on {nodes} nodes, largest gap to the bound", settled.gap, ""),
    ]


def _claims(pipelines: Sequence[Pipeline]) -> tuple[list[Claim], float]:
    """What the pipelines claim of the edge, and how many seconds of CPU their offers took."""
    started = time.process_time()
    ways = [offers(each.snapshot, each.policy, SHARED, kept=each.kept) for each in pipelines]
    seconds = time.process_time() - started
    everywhere = frozenset(str(node) for node in range(SIZES[-1][1]))
    needs = [Need((("cpu", cores), ("memory", gib * 2**30)), everywhere) for cores, gib in REPLICAS]
    return [
        Claim(str(number), 0, {"edge": needs[number % len(needs)]}, found) for number, found in enumerate(ways)
    ], seconds  # fmt: skip


def _rooms(claims: Sequence[Claim], nodes: int) -> list[Room]:
    """Nodes alike that together have half of what all would choose."""
    wanted = {"cpu": 0.0, "memory": 0.0}
    for claim in claims:
        for tier, count in claim.offers[0].replicas.items():
            for name, asked in claim.needs[tier].requests:
                wanted[name] += count * asked
    each = {name: amount / 2.0 / nodes for name, amount in wanted.items()}
    return [Room(str(node), {**each, "pods": 110.0}) for node in range(nodes)]
