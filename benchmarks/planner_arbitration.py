"""How long it takes to share nodes among pipelines that want about twice of what there is, and how much that may lose.

Seconds of the wall, on one thread; claims are given (tests/support/planner_claims.py), as the planning loop has them.
"""

import statistics
import time

from benchmarks._report import Row, row
from splitplane.planner.arbitration import arbitrate
from splitplane.planner.highs import solve
from tests.support.planner_claims import scarce

LIMIT_SECONDS = 2.0
SIZES = ((10, 3), (100, 20), (1000, 200))
SEEDS = (1, 2, 3)


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
    return rows
