"""Twenty generated days for each of four models, under the planner and all its rivals: the table of docs/simulation.md.

    python -m benchmarks.simulated_days                 # all of it: about twenty minutes of one core
    python -m benchmarks.simulated_days --model tracker # one model; the table is of all that were run before, too

Each class of traces has four days. Seeds are not those that anything was tuned on. A day's result is kept in
``build/bench/days``, until there are other rivals. Exceptions are named: strategies that serve as many requests within
the limit for less money, or more for no more.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._report import FOLDER
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.simulation.clairvoyant import cheapest_cost
from splitplane.simulation.replaying import Ground, Scenario, compare
from splitplane.simulation.strategies import STRATEGIES
from splitplane.simulation.traces import arrivals, bandwidths
from tests.support.planner_cases import POLICY, SNAPSHOT, links
from tests.support.planner_graphs import graph, three_tiers

CLASSES = (
    ("steady", "wandering"), ("diurnal", "wandering"), ("diurnal", "outages"), ("bursty", "wandering"),
    ("bursty", "outages"),
)  # fmt: skip
SEEDS = range(101, 105)
DAY = 2880
SEGMENTS = {"graph-12": 12, "graph-24": 24, "graph-48": 48}
MODELS = ("tracker", *SEGMENTS)

_EDGE_REPLICAS = 2.5
"""Replicas that would be busy all the time if the whole model ran on the edge, at the mean load."""
_UTILIZATION = Policy().max_utilization
_MORE, _NOTABLE = 0.0005, 0.001

Day = dict[str, dict[str, float]]
"""By strategy: share within the limit, cost per hour, switches, leaks, and of the planner's also the best cost."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    chosen = parser.parse_args(arguments).model or MODELS
    folder = FOLDER / "days"
    folder.mkdir(parents=True, exist_ok=True)
    for model in chosen:
        for load, link in CLASSES:
            for seed in SEEDS:
                path = folder / f"{model}_{load}_{link}_{seed}.json"
                if _stale(path):
                    path.write_text(json.dumps(day(model, load, link, seed)))
    days = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    print("\n".join(table(days)))


def _stale(path: Path) -> bool:
    """Whether a day is yet to be run, or was before there were all the rivals of today."""
    return not path.exists() or not STRATEGIES.keys() <= json.loads(path.read_text()).keys()


def day(model: str, load: str, link: str, seed: int) -> Day:
    """One day of one model under all strategies."""
    snapshot, policy, rate, bandwidth = case(model)
    scenario = Scenario(
        snapshot,
        policy,
        arrivals(load, rate, seed=seed, bins=DAY),
        bandwidths(link, bandwidth, seed=seed + 50, bins=DAY),
    )
    ground = Ground(scenario)
    found = compare(ground)
    held = [plan for metrics in found.values() for plan, _ in metrics.plans.most_common(4)]
    result: Day = {
        name: {"within": each.within, "cost": each.cost_per_hour, "switches": each.switches, "leaks": each.leaks}
        for name, each in found.items()
    }
    result["splitplane"]["best"] = cheapest_cost(ground, held, found["splitplane"].within)
    return result


def case(model: str) -> tuple[Snapshot, Policy, float, float]:
    """A pipeline whose input is private and whose cost counts, its mean rate and the median bytes per second."""
    if model == "tracker":
        policy = replace(POLICY, prefer=Preference.COST, max_cost_per_hour=None, max_utilization=_UTILIZATION)
        return replace(SNAPSHOT, arrival_scv=1.0, links=links(20)), policy, 3.5, 2.5e6
    profile = graph(SEGMENTS[model], seed=SEGMENTS[model])
    snapshot, policy = three_tiers(profile, replicas=8)
    edge = profile.devices["edge"].prefix_seconds[-1]
    two = tuple(tier for tier in snapshot.tiers if tier.name != "fog")
    policy = replace(
        policy,
        max_p95_seconds=2.5 * edge,
        max_utilization=_UTILIZATION,
        raw_input_stays_trusted=True,
        codecs=("fp32", "fp16", "int8"),
        max_partitions=2,
    )
    between = tuple(link for link in snapshot.links if "fog" not in (link.source, link.target))
    return replace(snapshot, tiers=two, links=between), policy, _EDGE_REPLICAS / edge, 1e7


def table(days: dict[str, Day]) -> Iterator[str]:
    """Markdown: a row for each model and class, then the exceptions."""
    rivals = [name for name in next(iter(days.values()), {}) if name != "splitplane"]
    yield "| model, load, link | splitplane | regret | " + " | ".join(rivals) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(rivals)
    exceptions = []
    for model in MODELS:
        for load, link in CLASSES:
            some = [found for name, found in days.items() if name.startswith(f"{model}_{load}_{link}_")]
            if not some:
                continue
            ours = _mean(some, "splitplane")
            regrets = [each["splitplane"]["cost"] / each["splitplane"]["best"] - 1.0 for each in some]
            cells = []
            for name in rivals:
                theirs = _mean(some, name)
                cells.append(_cell(theirs) if theirs else "")
                if theirs and _better(theirs, ours):
                    exceptions.append(f"{model}, {load}, {link}: {name}" + " (shows the input)" * (theirs["leaks"] > 0))
            yield f"| {model}, {load}, {link} | {_cell(ours)} | {statistics.mean(regrets):.1%} | {' | '.join(cells)} |"
    yield ""
    yield "Serve as much for less, or more for no more: " + ("; ".join(exceptions) or "none")


def _better(theirs: dict[str, float], ours: dict[str, float]) -> bool:
    more, cheaper = theirs["within"] - ours["within"], ours["cost"] / theirs["cost"] - 1.0
    return (more > _MORE and cheaper > -_NOTABLE) or (more > -_MORE and cheaper > _NOTABLE)


def _mean(days: Sequence[Day], name: str) -> dict[str, float]:
    rows = [each[name] for each in days if name in each]
    keys = ("within", "cost", "leaks")
    return {key: statistics.mean(row[key] for row in rows) for key in keys} if rows else {}


def _cell(row: dict[str, Any]) -> str:
    return f"{row['within']:.2%} {row['cost']:.3f}"


if __name__ == "__main__":
    main()
