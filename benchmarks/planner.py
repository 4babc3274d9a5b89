"""How fast the planner is: one decision, the whole frontier of a large graph, and many pipelines per interval.

One decision is that for the pitch tracker: all cuts, three codecs, two tiers of up to eight replicas.

The baseline is the same search in plain Python (tests/support/planner_reference.py), which looks at every plan in turn
and does nothing else; a decision also weighs the active plan, lists routes and predicts the baselines.

    make bench-planner     # writes build/bench/bench-planner.json
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks import planner_arbitration, planner_fleet, planner_frontier, planner_sites, simulation
from benchmarks._report import Row, row, write
from splitplane.domain.measurements import Value
from splitplane.freed_memory import SEARCH_BYTES, keep_freed
from splitplane.planner import plan
from tests.support.planner_cases import POLICY, SNAPSHOT, edge_only, serving, with_tiers
from tests.support.planner_reference import enumerate_rows, search

ROUNDS, REFERENCE_ROUNDS = 200, 15
LIMIT_MILLISECONDS = 20.0


def main() -> list[Row]:
    """All of it (benchmarks/planner_frontier.py, planner_fleet.py, planner_arbitration.py, planner_sites.py,
    simulation.py), with the memory of a process that plans."""
    keep_freed(SEARCH_BYTES)
    return [
        *decisions(),
        *planner_frontier.main(),
        *planner_fleet.main(),
        *planner_arbitration.main(),
        *planner_sites.main(),
        *simulation.main(),
    ]


def decisions() -> list[Row]:
    """Medians in milliseconds: a decision against its limit, and against the plain-Python search of this run."""
    changes: dict[str, object] = {"max_replicas": 8, "slots": 8}
    snapshot = replace(with_tiers(SNAPSHOT, edge={**changes, "min_replicas": 1}, cloud=changes), arrival_scv=1.0)
    start = milliseconds(lambda: plan(snapshot, POLICY, 0.0), ROUNDS)
    replanned = replace(snapshot, arrival_rate=Value(5.0), active=serving(edge_only(8)))
    replan = milliseconds(lambda: plan(replanned, POLICY, 0.0), ROUNDS)
    reference = milliseconds(lambda: search(snapshot, POLICY), REFERENCE_ROUNDS)
    plans = sum(1 for _ in enumerate_rows(snapshot, POLICY))
    return [
        row("planner: re-plan of the pitch tracker", replan, "ms", LIMIT_MILLISECONDS),
        row(f"planner: first plan, search of {plans} plans against plain Python", start, "ms", reference),
    ]


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median duration of a call."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(times)


if __name__ == "__main__":
    write("bench-planner", main())
