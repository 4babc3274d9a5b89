"""``splitplane simulate``: a pipeline through hours of load and links, under the planner and under its rivals."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from splitplane.cli.conditions import MOST_RATE, Conditions
from splitplane.cli.plans import out
from splitplane.cli.plots import check_picture, new_figure, save
from splitplane.domain.measurements import known
from splitplane.domain.snapshots import Policy, Preference, Snapshot
from splitplane.planner.arrays import Array
from splitplane.simulation.clairvoyant import cheapest_cost
from splitplane.simulation.events import by_request
from splitplane.simulation.replaying import Ground, Metrics, Scenario, compare
from splitplane.simulation.trace_files import read_arrivals, read_bandwidths
from splitplane.simulation.traces import BIN_SECONDS, Trace, arrivals, bandwidths

_HELD = 4
_SMOOTH_SECONDS = 600.0
_COLUMNS = ("", "WITHIN LIMIT", "P95 OF BINS", "COST/H", "SWITCHES", "MOVING PODS", "SHOWING INPUT")

_BY_REQUEST = ("WITHIN, BY REQUEST", "P95", "TURNED AWAY")


def simulate(
    conditions: Conditions,
    load: Annotated[
        str,
        typer.Option(
            help="steady, diurnal or bursty around --rate, or a file: Azure LLM, Azure functions, Mooncake; scaled to a"
            " mean of --rate if that is given."
        ),
    ] = "diurnal",
    function: Annotated[
        str,
        typer.Option(
            metavar="HASH", help="Of a file of Azure's functions the one whose HashFunction (func) begins so."
        ),
    ] = "",
    link: Annotated[
        str, typer.Option(help="steady, wandering or outages around --bandwidth, or a file of lines: seconds Mbit/s.")
    ] = "wandering",
    hours: Annotated[
        float, typer.Option(help="Length of the replay; of files the first hours.", min=0.1, max=8784.0)
    ] = 24.0,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Begin files anew that are shorter than that; else the replay ends there.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of generated traces.")] = 1,
    events: Annotated[
        bool, typer.Option("--events", help="Also replay each request by itself, which takes some seconds a day.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the replay over time into a file (PNG, SVG or PDF).")] = None,
) -> None:
    """Replay load and links, and tell what each way of planning would have served, at which cost."""
    if plot is not None:
        check_picture(plot)
    stated = conditions.read()
    snapshot, policy = stated.snapshot, stated.policy
    bins = max(2, round(hours * 3600.0 / BIN_SECONDS))
    try:
        if repeat and not (_is_file(load) or _is_file(link)):
            raise ValueError("--repeat is of files: give one as --load or --link")
        link_trace = _link(link, _median(snapshot, policy), seed=seed + 1, bins=bins, repeat=repeat)
        replayed = min(bins, len(link_trace))
        load_trace = _load(load, conditions, function=function, seed=seed, bins=replayed, repeat=repeat)
        every = max(1, round(stated.interval_seconds / BIN_SECONDS))
        scenario = Scenario(snapshot, policy, load_trace, link_trace, every)
        ground = Ground(scenario)
        found = compare(ground)
        single = {name: _by_request(metrics) if events else () for name, metrics in found.items()}
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    priced = all(known(tier.price_per_hour) is not None for tier in snapshot.tiers)
    table = Table(*_COLUMNS, *(_BY_REQUEST if events else ()), box=None, pad_edge=False, header_style="bold")
    for name, metrics in found.items():
        table.add_row(name, *_cells(metrics, priced=priced), *single[name])
    told = _told(load, scenario, conditions)
    out.print(f"{scenario.bins * BIN_SECONDS / 3600.0:.1f} hours{told}", markup=False)
    if scenario.bins < bins:
        ended = load if len(load_trace) < replayed else link
        out.print(f"{ended} ends after {scenario.bins * BIN_SECONDS:.0f} s: --repeat begins it anew", markup=False)
    if every * BIN_SECONDS != stated.interval_seconds:
        asked = f"every {every * BIN_SECONDS:g} s, as bins have {BIN_SECONDS:g} s"
        out.print(f"All are asked {asked}, not every {stated.interval_seconds:g} s (intervalSeconds)", markup=False)
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
    """What splitplane's service would at least have cost whoever knew the traces."""
    ours = found["splitplane"]
    held = [plan for metrics in found.values() for plan, _ in metrics.plans.most_common(_HELD)]
    best = cheapest_cost(ground, held, ours.within)
    if not best > 0.0:
        return "Nothing costs anything here: no way of planning is dearer than another"
    told = f"Who knew the traces would have served as much as splitplane for no less than {best:.3f}/h: "
    preferred = ground.scenario.policy.prefer
    if preferred is not Preference.COST:
        return f"{told}splitplane pays {ours.cost_per_hour:.3f}/h, as {preferred} is preferred"
    return f"{told}splitplane's regret is at most {ours.cost_per_hour / best - 1.0:.0%}"


def _load(what: str, conditions: Conditions, *, function: str, seed: int, bins: int, repeat: bool) -> Trace:
    """What arrives: of a file the first bins, scaled if a rate is stated."""
    if not _is_file(what):
        if function:
            raise ValueError("--function is of a file of Azure's functions: give that as --load")
        return arrivals(what, conditions.rate, seed=seed, bins=bins)
    read = _first(read_arrivals(Path(what), function=function), bins, repeat=repeat)
    mean = float(read.mean())
    if mean > MOST_RATE:
        raise ValueError(f"{what} has {mean:g} requests/s in the mean, and no more than {MOST_RATE:g} can be replayed")
    if conditions.stated_rate is None:
        return Trace(read)
    if not mean > 0.0:
        raise ValueError(f"{what} has no requests in the hours that are replayed: leave out --rate, or --hours")
    return Trace(read * (conditions.stated_rate / mean))


def _link(what: str, median: float, *, seed: int, bins: int, repeat: bool) -> Trace:
    if not _is_file(what):
        return bandwidths(what, median, seed=seed, bins=bins)
    return Trace(_first(read_bandwidths(Path(what)), bins, repeat=repeat))


def _first(read: Trace, bins: int, *, repeat: bool) -> Array:
    """The first bins of what a file holds: fewer where it is shorter, unless it is repeated."""
    return np.resize(read.values, bins) if repeat else read.values[:bins]


def _is_file(what: str) -> bool:
    path = Path(what)
    return bool(path.suffix) or path.exists()


def _told(load: str, scenario: Scenario, conditions: Conditions) -> str:
    """What became of the rates of a file."""
    if not _is_file(load):
        return ""
    mean = scenario.arrivals.values[: scenario.bins].mean()
    how = "as the file has it: --rate would scale it" if conditions.stated_rate is None else "scaled to --rate"
    return f", {mean:.3g} requests/s in the mean ({how})"


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
