"""Seconds of one core that planning 10, 100 and 1,000 pipelines takes once, with few or all of them changed since.

Four models take turns: the measured pitch tracker on two tiers, and graphs of 12, 24 and 48 segments on three. Each
pipeline serves what was planned for it before. *Changed* is a new rate and new bandwidths, as the next interval
measures them; of the others the planner takes the frontier over, and weighs everything else anew.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks._report import Row, row
from splitplane.domain.measurements import Value, known
from splitplane.domain.snapshots import Active, Policy, Snapshot
from splitplane.planner import Kept, plan
from tests.support.planner_cases import POLICY, SNAPSHOT
from tests.support.planner_graphs import graph, three_tiers

INTERVAL_SECONDS = 30.0
SHARE = 0.30
SIZES = (10, 100, 1000)


@dataclass(slots=True)
class Pipeline:
    snapshot: Snapshot
    policy: Policy
    kept: Kept


def main() -> list[Row]:
    rows = []
    everyone = fleet(SIZES[-1])
    for changed, limit in ((0.05, SHARE * INTERVAL_SECONDS), (1.0, None)):
        for size in SIZES:
            seconds = interval(everyone[:size], changed, random.Random(2))
            name = f"{size} pipelines, {changed:.0%} changed: CPU per interval of {INTERVAL_SECONDS:.0f} s"
            rows.append(row(name, seconds, "s", limit if size == SIZES[-1] else None))
    return rows


def fleet(size: int) -> list[Pipeline]:
    """Pipelines that were planned once."""
    pipelines = newcomers(size)
    for pipeline in pipelines:
        decide(pipeline)
    return pipelines


def newcomers(size: int) -> list[Pipeline]:
    """Pipelines at rates and over links of their own."""
    rng = random.Random(1)
    models = [(replace(SNAPSHOT, arrival_scv=1.0), POLICY)]
    models += [three_tiers(graph(segments, seed=segments), rate=4.0, replicas=8) for segments in (12, 24, 48)]
    return [
        Pipeline(varied(snapshot, rng, 0.5, 1.5), policy, Kept(snapshot.profile))
        for snapshot, policy in (models[number % len(models)] for number in range(size))
    ]


def change(pipelines: Sequence[Pipeline], share: float, rng: random.Random) -> None:
    """New rates and bandwidths for this share of the pipelines."""
    for pipeline in rng.sample(list(pipelines), max(1, round(share * len(pipelines)))):
        pipeline.snapshot = varied(pipeline.snapshot, rng, 0.9, 1.1)


def interval(pipelines: Sequence[Pipeline], share: float, rng: random.Random) -> float:
    """Seconds of CPU to plan all pipelines once, with this share of them changed."""
    change(pipelines, share, rng)
    started = time.process_time()
    for pipeline in pipelines:
        plan(pipeline.snapshot, pipeline.policy, INTERVAL_SECONDS, kept=pipeline.kept)
    return time.process_time() - started


def decide(pipeline: Pipeline) -> None:
    """Plan, and serve what comes of it."""
    decision = plan(pipeline.snapshot, pipeline.policy, 0.0, kept=pipeline.kept)
    if decision.target is not None:
        active = Active(decision.target.plan, 1, 0.0, 5.0, inputs=decision.inputs)
        pipeline.snapshot = replace(pipeline.snapshot, active=active)
        plan(pipeline.snapshot, pipeline.policy, 1.0, kept=pipeline.kept)


def varied(snapshot: Snapshot, rng: random.Random, low: float, high: float) -> Snapshot:
    """The snapshot at another rate, over links of other bandwidths."""
    factor = rng.uniform(low, high)
    links = tuple(
        replace(link, bandwidth_bytes_per_second=Value(factor * (known(link.bandwidth_bytes_per_second) or 1.0)))
        for link in snapshot.links
    )
    rate = Value(rng.uniform(low, high) * (known(snapshot.arrival_rate) or 1.0))
    return replace(snapshot, arrival_rate=rate, links=links)
