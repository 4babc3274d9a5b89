"""``splitplane simulate``: a pipeline through hours of load and links, under the planner and under its rivals."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from splitplane.cli.conditions import Conditions
from splitplane.cli.plans import out
from splitplane.cli.plots import new_figure, save
from splitplane.domain.measurements import known
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.simulation.clairvoyant import cheapest_cost
from splitplane.simulation.events import by_request
from splitplane.simulation.replaying import Ground, Metrics, Scenario, compare
from splitplane.simulation.traces import BIN_SECONDS, Trace, arrivals, bandwidths, read_arrivals, read_bandwidths

_HELD = 4
_SMOOTH_SECONDS = 600.0
_COLUMNS = ("", "WITHIN LIMIT", "P95 OF BINS", "COST/H", "SWITCHES", "MOVING PODS", "SHOWING INPUT")

_BY_REQUEST = ("WITHIN, BY REQUEST", "P95", "TURNED AWAY")


def simulate(
    conditions: Conditions,
    load: Annotated[
        str,
        typer.Option(help="steady, diurnal or bursty around --rate, or a file: Azure LLM, Azure functions, Mooncake."),
    ] = "diurnal",
    link: Annotated[
        str, typer.Option(help="steady, wandering or outages around --bandwidth, or a file of lines: seconds Mbit/s.")
    ] = "wandering",
    hours: Annotated[
        float, typer.Option(help="Length of the replay; of files the first hours.", min=0.1, max=8784.0)
    ] = 24.0,
    seed: Annotated[int, typer.Option(help="Of generated traces.")] = 1,
    events: Annotated[
        bool, typer.Option("--events", help="Also replay each request by itself, which takes some seconds a day.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the replay over time into a file (PNG, SVG or PDF).")] = None,
) -> None:
    """Replay load and links, and tell what each way of planning would have served, at which cost."""
    snapshot, policy = conditions.arguments()
    bins = max(2, round(hours * 3600.0 / BIN_SECONDS))
    try:
        scenario = Scenario(
            snapshot,
            policy,
            _trace(
                load, conditions.rate, read_arrivals,
                lambda kind, mean: arrivals(kind, mean, seed=seed, bins=bins), bins,
            ),
            _trace(
                link, _median(snapshot, policy), read_bandwidths,
                lambda kind, median: bandwidths(kind, median, seed=seed + 1, bins=bins), bins,
            ),
        )  # fmt: skip
        ground = Ground(scenario)
        found = compare(ground)
        single = {name: _by_request(metrics) if events else () for name, metrics in found.items()}
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    priced = all(known(tier.price_per_hour) is not None for tier in snapshot.tiers)
    table = Table(*_COLUMNS, *(_BY_REQUEST if events else ()), box=None, pad_edge=False, header_style="bold")
    for name, metrics in found.items():
        table.add_row(name, *_cells(metrics, priced=priced), *single[name])
    out.print(f"{scenario.bins * BIN_SECONDS / 3600.0:.1f} hours", markup=False)
    out.print(table)
    ours = found["splitplane"]
    if not ours.plans:
        out.print("splitplane found no plan that serves: splitplane explain says which limits bind", markup=False)
    elif not priced:
        out.print("Costs are not known: state them with --price TIER=PRICE, or pricePerHour", markup=False)
    else:
        out.print(_regret(ground, found), markup=False)

    if plot is not None:
        _draw(ground, found, plot)
        out.print(f"drawn into {plot}", markup=False)


def _regret(ground: Ground, found: Mapping[str, Metrics]) -> str:
    """What splitplane's service would have cost whoever knew the traces."""
    ours = found["splitplane"]
    held = [plan for metrics in found.values() for plan, _ in metrics.plans.most_common(_HELD)]
    best = cheapest_cost(ground, held, ours.within)
    if not best > 0.0:
        return "Nothing costs anything here: no way of planning is dearer than another"
    told = f"Who knew the traces would have served as much as splitplane for {best:.3f}/h: "
    preferred = ground.scenario.policy.prefer
    if preferred is not Preference.COST:
        return f"{told}splitplane pays {ours.cost_per_hour:.3f}/h, as {preferred} is preferred"
    return f"{told}splitplane's regret is {ours.cost_per_hour / best - 1.0:.0%}"


def _trace(
    what: str, level: float, read: Callable[[Path], Trace], make: Callable[[str, float], Trace], bins: int
) -> Trace:
    path = Path(what)
    if path.suffix or path.exists():
        found = read(path)
        return Trace(found.values[:bins], found.bin_seconds)
    return make(what, level)


def _median(snapshot: Snapshot, policy: Policy) -> float:
    """Bytes per second of the link that leaves the gateway's tier. Raises ``ValueError`` if none is stated."""
    for link in snapshot.links:
        bandwidth = known(link.bandwidth_bytes_per_second)
        if link.source == policy.gateway_tier and bandwidth is not None:
            return bandwidth
    raise ValueError("state how fast links are: --bandwidth 20Mbit,5ms")


def _cells(metrics: Metrics, *, priced: bool) -> tuple[str, ...]:
    return (
        f"{metrics.within:.2%}",
        _milliseconds(metrics.p95),
        f"{metrics.cost_per_hour:.3f}" if priced else "unknown",
        str(metrics.switches),
        str(metrics.moves),
        str(metrics.leaks) if metrics.leaks else "never",
    )


def _by_request(metrics: Metrics) -> tuple[str, ...]:
    found = by_request(metrics)
    return f"{found.within:.2%}", _milliseconds(found.p95), f"{found.refused:.2%}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if math.isfinite(seconds) else "not served"


def _draw(ground: Ground, found: Mapping[str, Metrics], path: Path) -> None:
    """Load and link, cost and late requests over time; means over ten minutes, but for the load and the link."""
    figure = new_figure(width=9, height=8)
    axes: Any = figure.subplots(3, 1, sharex=True)
    hours = np.arange(ground.scenario.bins) * (ground.width / 3600.0)
    axes[0].plot(hours, ground.rates, color="C0", linewidth=0.8)
    axes[0].set_ylabel("requests/s", color="C0")
    link = axes[0].twinx()
    link.plot(hours, ground.scenario.bandwidths.values[: len(hours)] * 8e-6, color="C1", linewidth=0.8, alpha=0.7)
    link.set_ylabel("link (Mbit/s)", color="C1")
    step = max(1, round(_SMOOTH_SECONDS / ground.width))
    starts = np.arange(0, len(hours), step)
    counts = np.diff(np.append(starts, len(hours)))
    for name, metrics in found.items():
        style = {"linewidth": 2.0 if name == "splitplane" else 0.9, "label": name}
        axes[1].step(hours[starts], np.add.reduceat(metrics.costs, starts) / counts, where="post", **style)
        late = np.add.reduceat((1.0 - metrics.shares) * ground.rates, starts) / counts
        axes[2].step(hours[starts], late, where="post", **style)
    axes[1].set_ylabel("cost per hour")
    axes[2].set(ylabel="late requests/s", xlabel="hours", yscale="symlog")
    axes[1].legend(fontsize="small", ncols=2)
    for each in axes:
        each.grid(alpha=0.3)
    save(figure, path)
