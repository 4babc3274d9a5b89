"""Plans as rows of a table for people."""

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from splitplane.domain.plans import Candidate, Plan, Steps, span_text
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner import indifference, left_out, why_overloaded
from splitplane.planner.explain import milliseconds as milliseconds_of

out = Console(highlight=False, soft_wrap=True)
if not out.is_terminal:
    out.width = 240  # lines of a table stay whole where other programs read them

_COLUMNS = ("PLAN", "REPLICAS", "P50", "P95", "P99", "COST/H", "PER 1000", "LEAK", "LOSS", "MAX RATE", "BREAKS")


WAY_OUT = "way out"


def new_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def show(rows: Iterable[tuple[str, Candidate]], *, rate: float) -> None:
    """Print plans, each with a word on what it is; ``rate`` is that of requests per second. A ``WAY_OUT`` that bears
    less was predicted at the rate that it bears, which is told."""
    table, fewer = new_table("", *_COLUMNS), False
    for name, candidate in rows:
        borne = candidate.predicted.max_rate_per_second if name == WAY_OUT else rate
        fewer = fewer or borne < rate
        table.add_row(name, *_cells(candidate, min(rate, borne)))
    out.print(table)
    if fewer:
        told = f"A {WAY_OUT} that bears less than {rate:g}/s is sent no more than it bears"
        out.print(f"{told}: its numbers are those at its MAX RATE", markup=False)


def show_routes(routes: Sequence[Candidate], steps: Steps | None) -> None:
    """Print what the gateway chooses from by itself: routes, bandwidths at which each is best, and highest rates."""
    link = f" ON {steps.source} TO {steps.target}" if steps else ""
    table = new_table("ROUTE", f"BEST{link}", "MAX RATE")
    for place, route in enumerate(routes):
        spans = steps.ranges(place) if steps else ()
        best = ", ".join(span_text(*span) for span in spans) or "(way out)"
        table.add_row(str(route.plan), best if steps else "-", _rates(route, steps, place))
    out.print(table)


def _rates(route: Candidate, steps: Steps | None, place: int) -> str:
    """What a route bears where it is the best, from the slow ends of such bandwidths to the fast; a way out: now."""
    ends = [steps.capacities[place].at(end) for span in steps.ranges(place) for end in span] if steps else []
    ends = ends or [route.predicted.max_rate_per_second]
    return " to ".join(dict.fromkeys((rate_text(min(ends)), rate_text(max(ends)))))


def _cells(candidate: Candidate, rate: float) -> tuple[str, ...]:
    predicted = candidate.predicted
    return (
        str(candidate.plan),
        "+".join(stage.capacity for stage in candidate.plan.stages),
        milliseconds(predicted.p50_seconds),
        milliseconds(predicted.p95_seconds),
        milliseconds(predicted.p99_seconds),
        number(predicted.cost_per_hour, ".2f"),
        number(per_thousand(candidate, rate), ".3g"),
        number(predicted.leak, ".2f"),
        number(predicted.accuracy_loss, ".2%"),
        rate_text(predicted.max_rate_per_second),
        ", ".join(candidate.violations),
    )


def told_indifference(snapshot: Snapshot, policy: Policy, plan: Plan) -> list[str]:
    """From which rate on replicas cost less than pay-per-use, a line for each stage whose tier offers that."""
    lines = []
    for stage in indifference(snapshot, policy, plan):
        rates = [f"{number}: {rate:.3g}/s" for number, rate in enumerate(stage.rates, start=1) if math.isfinite(rate)]
        pays = f"replica by replica from {', '.join(rates)}" if rates else "at no rate"
        lines.append(f"{stage.tier}: replicas pay {pays}; paid by the use: {stage.share:.1%} of the requests")
    return lines


def rate_text(rate: float) -> str:
    return "any" if math.isinf(rate) else f"{rate:.2f}/s"


def told_overloads(snapshot: Snapshot, policy: Policy, rows: Iterable[tuple[str, Candidate]]) -> list[str]:
    """What each plan that does not bear the load is too small for, a line each."""
    told = ((name, why_overloaded(snapshot, policy, candidate)) for name, candidate in rows)
    return [f"Overload of {name}: {why}" for name, why in told if why]


def told_left_out(snapshot: Snapshot, policy: Policy, told: str = "", *, stated: bool = True) -> list[str]:
    """What tiers lack that no plan uses, as one line, but for what is ``told`` already; and how to mend that, where
    conditions are ``stated``."""
    clauses = [clause for clause in left_out(snapshot, policy) if clause not in told]
    unknown = any(clause.endswith(("unmeasured", "unknown")) for clause in clauses)
    hint = " (--bandwidth states links, --price prices)" if unknown and stated else ""
    return [f"Not weighed: {'; '.join(clauses)}{hint}"] if clauses else []


def per_thousand(candidate: Candidate, rate: float) -> float:
    """Cost per 1,000 requests at ``rate`` requests per second; NaN without requests."""
    return candidate.predicted.cost_per_hour / (rate * 3.6) if rate > 0.0 else math.nan


def milliseconds(seconds: float | None) -> str:
    """Nothing where no such number is predicted; under more load than a plan bears waits have no end."""
    return "" if seconds is None else milliseconds_of(seconds)


def number(value: float | None, form: str) -> str:
    """A number, or a dash where it is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"
