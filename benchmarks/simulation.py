"""How long a day of ten pipelines takes in the simulator: all strategies, and who knew the traces; seconds of CPU."""

import time
from dataclasses import replace

from benchmarks._report import Row, row
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.simulation.clairvoyant import cheapest_cost
from splitplane.simulation.replaying import Ground, Scenario, compare
from splitplane.simulation.traces import arrivals, bandwidths
from tests.support.planner_cases import POLICY, SNAPSHOT

PIPELINES = 10
LIMIT_SECONDS = 60.0
DAY = 2880
FASTEST_LINK = 2.5e6


def main() -> list[Row]:
    seconds = sum(day(number) for number in range(PIPELINES))
    return [row(f"simulator: 24 hours of {PIPELINES} pipelines under all strategies", seconds, "s", LIMIT_SECONDS)]


def day(number: int) -> float:
    """Seconds of CPU for a day of the pitch tracker, at a load and over a link of its own."""
    load, link = ("diurnal", "bursty")[number % 2], ("wandering", "outages")[number // 2 % 2]
    started = time.process_time()
    scenario = Scenario(
        *pipeline(), arrivals(load, 2.0 + number / 4.0, seed=number, bins=DAY),
        bandwidths(link, FASTEST_LINK, seed=number + 1, bins=DAY),
    )  # fmt: skip
    ground = Ground(scenario)
    found = compare(ground)
    held = [plan for metrics in found.values() for plan, _ in metrics.plans.most_common(4)]
    cheapest_cost(ground, held, found["splitplane"].within)
    return time.process_time() - started


def pipeline() -> tuple[Snapshot, Policy]:
    return replace(SNAPSHOT, arrival_scv=1.0), replace(POLICY, prefer=Preference.COST, max_cost_per_hour=None)
