"""How long it takes to plan one pipeline at many sites together, and what sharing replicas saves.

Seconds of CPU: the pitch tracker at sites whose links lie between 2 and 100 Mbit/s and whose loads
between 0.3 and 6 requests per second, with up to 200 replicas behind them (tests/support/planner_sites.py). Once
without batches, and once where each further sample of a batch takes 40 % of the first one's time.
"""

import statistics
import time
from dataclasses import replace

from benchmarks._report import Row, row
from splitplane.domain.snapshots import Preference
from splitplane.planner import plan_sites
from tests.support.planner_batches import shared
from tests.support.planner_cases import SNAPSHOT
from tests.support.planner_sites import CHEAP, many_sites, preferring

LIMIT_SECONDS = 1.0
SIZES = (1, 10, 100)
SEEDS = (1, 2, 3)
BATCH_SECONDS = 0.4


def main() -> list[Row]:
    rows = []
    for size in SIZES:
        seconds, gaps, saved = [], [], []
        for seed in SEEDS:
            sites = many_sites(size, seed=seed)
            for prefer in Preference:
                started = time.process_time()
                found = plan_sites(sites, preferring(prefer), shared="cloud")
                seconds.append(time.process_time() - started)
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
    return [*rows, *with_batches()]


def with_batches() -> list[Row]:
    """The largest size, with a limit on p95 that leaves 400 ms for a batch, against the same without batches."""
    profile, seconds, saved = shared(SNAPSHOT.profile), [], []
    for seed in SEEDS:
        sites = {name: replace(each, profile=profile) for name, each in many_sites(SIZES[-1], seed=seed).items()}
        for prefer in Preference:
            policy = replace(preferring(prefer), max_p95_seconds=4.0 * BATCH_SECONDS)
            started = time.process_time()
            found = plan_sites(sites, replace(policy, max_batch=8), shared="cloud")
            seconds.append(time.process_time() - started)
            if prefer is Preference.COST:
                saved.append(1.0 - found.cost_per_hour / plan_sites(sites, policy, shared="cloud").cost_per_hour)
    return [
        row(f"sites: {SIZES[-1]} together with batches, slowest of {len(seconds)}", max(seconds), "s", LIMIT_SECONDS),
        row(f"sites: {SIZES[-1]} together with batches, cheaper than without by", statistics.mean(saved), ""),
    ]


if __name__ == "__main__":
    for each in main():
        print(each)
