"""How long it takes to plan one pipeline at many sites together, and what sharing replicas saves.

Seconds of the wall, on one thread: the pitch tracker at sites whose links lie between 2 and 100 Mbit/s and whose loads
between 0.3 and 6 requests per second, with up to 200 replicas behind them (tests/support/planner_sites.py).
"""

import statistics
import time

from benchmarks._report import Row, row
from splitplane.domain.snapshots import Preference
from splitplane.planner import plan_sites
from tests.support.planner_sites import CHEAP, many_sites, preferring

LIMIT_SECONDS = 1.0
SIZES = (1, 10, 100)
SEEDS = (1, 2, 3)


def main() -> list[Row]:
    rows = []
    for size in SIZES:
        seconds, gaps, saved = [], [], []
        for seed in SEEDS:
            sites = many_sites(size, seed=seed)
            for prefer in Preference:
                started = time.perf_counter()
                found = plan_sites(sites, preferring(prefer), shared="cloud")
                seconds.append(time.perf_counter() - started)
                gaps.append(found.gap / found.cost_per_hour)
            apart = sum(plan_sites({name: each}, CHEAP, shared="cloud").cost_per_hour for name, each in sites.items())
            saved.append(1.0 - plan_sites(sites, CHEAP, shared="cloud").cost_per_hour / apart)
        limit = LIMIT_SECONDS if size == SIZES[-1] else None
        rows.append(row(f"sites: {size} together, slowest of {len(seconds)}", max(seconds), "s", limit))
        if size > 1:
            rows += [
                row(f"sites: {size} together, largest gap to the bound", max(gaps), ""),
                row(f"sites: {size} together, cheaper than each for itself by", statistics.mean(saved), ""),
            ]
    return rows


if __name__ == "__main__":
    for each in main():
        print(each)
