"""The whole frontier of a 500-node graph: 100 candidate cuts, three tiers, four codecs, up to 16 replicas.

Once with queues, once where latency is a sum and HiGHS can find a single point of it (tests/support/planner_milp.py).
Times are of CPU, so that what else runs on the machine matters less.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks._report import Row, row
from splitplane.domain.measurements import Value
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner.context import Context, build_context
from splitplane.planner.frontier import Frontier, frontier_of_lines
from splitplane.planner.keeping import Kept
from tests.support.planner_batches import shared
from tests.support.planner_graphs import graph, three_tiers
from tests.support.planner_milp import cheapest

LIMIT_MILLISECONDS = 50.0
ROUNDS = 15
MOST_LOSS = 0.02


def main() -> list[Row]:
    snapshot, policy = three_tiers(graph())
    queues = _milliseconds(snapshot, policy)
    batched = replace(snapshot, profile=shared(snapshot.profile, 0.5)), replace(policy, max_batch=8)
    together = _milliseconds(*batched)
    snapshot, policy = three_tiers(graph(time_cv=0.0), arrival_scv=0.0)
    sums = _milliseconds(snapshot, policy)
    context = build_context(snapshot, policy)
    found = frontier_of_lines(context, context.rate)
    solved, worst = [], 0.0
    for p95 in _limits(found):
        optimum = cheapest(context, p95=p95, loss=MOST_LOSS)
        best = _cheapest(found, p95)
        solved.append(optimum.seconds * 1e3)
        worst = max(worst, abs(optimum.cost - best) / best)
    if worst > 1e-6:
        raise AssertionError(f"HiGHS finds another optimum: it differs by {worst:.2e}")
    one = statistics.median(solved)
    return [
        row("frontier of a 500-node graph, with queues", queues, "ms", LIMIT_MILLISECONDS),
        row("the same, where stages compute up to 8 requests together", together, "ms", LIMIT_MILLISECONDS),
        row("frontier of a 500-node graph, without queues, against one point of it by HiGHS", sums, "ms", one),
        row("the same, against a MILP per point of the frontier (points x median)", sums, "ms", one * len(found)),
        row("points of that frontier", float(len(found)), "plans"),
        row("largest relative difference of the optimum to HiGHS's", worst, "", None),
    ]


def _milliseconds(snapshot: Snapshot, policy: Policy) -> float:
    times = []
    for context in _contexts(snapshot, policy):
        started = time.process_time()
        frontier_of_lines(context, context.rate)
        times.append(time.process_time() - started)
    return 1e3 * statistics.median(times[1:])


def _contexts(snapshot: Snapshot, policy: Policy) -> Iterator[Context]:
    """The same model at rates that differ a little each time, so that no result is taken over."""
    kept = Kept(snapshot.profile)
    for number in range(ROUNDS + 1):
        yield build_context(replace(snapshot, arrival_rate=Value(8.0 + 0.001 * number)), policy, kept)


def _limits(found: Frontier) -> list[float]:
    """Limits on p95 that are values of the frontier, so that its rounding and the programme's agree."""
    seconds = np.unique(found.p95[found.loss <= round(MOST_LOSS * 1000)])
    return [float(seconds[int(share * (len(seconds) - 1))]) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]


def _cheapest(found: Frontier, p95: float) -> float:
    return float(found.cost[(found.p95 <= p95) & (found.loss <= round(MOST_LOSS * 1000))].min())
