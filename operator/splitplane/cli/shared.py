"""What sites share, and what pipelines are granted of scarce nodes, for people: made again from a record, with why."""

from collections.abc import Mapping

from splitplane.cli.plans import milliseconds, new_table, number, out
from splitplane.cli.recorded import RecordedGrants, RecordedPool, moment
from splitplane.planner.arbitration import Answer
from splitplane.planner.granting import Granted, told
from splitplane.planner.pooling import Sized
from splitplane.planner.pools import Pool
from splitplane.planner.shared_replay import Settling

_AGAIN = "Made again: the same, bit for bit"
_GATES = {
    "granted": "other pipelines were granted all of the tier",
    "unavailable": "nothing can run on the tier now, so it stays as it was",
    "advisory": "mode Advisory keeps what serves",
    "gain": "more replicas, or other batches, would gain less than minGainPercent",
    "headroom": "fewer would do, but not at slightly more load",
    "scale-down": "fewer would do, but not yet for the whole scale-down window",
    "cost": "the limit on cost leaves no money for as many",
    "room": "the nodes have no room for more, or for another range beside this one",
}


def show_pool(found: RecordedPool) -> None:
    """Print why a pool was sized so. Raises ``ValueError`` where the planner takes no such arguments any more."""
    sizing, made = found.sizing, found.sizing.again()
    before, after = sizing.before.pool, sizing.after.pool
    lines = [
        f"{found.pipeline} at {moment(sizing.now)}: what {len(sizing.snapshots)} sites share on tier {sizing.shared}",
        f"{_told(before)} -> {_told(after)}",
        _AGAIN if made.pooling == sizing.after else f"Made again by this version: {_told(made.pooling.pool)}",
        *_reasons(made, sizing.now),
    ]
    for line in lines:
        out.print(line, markup=False)
    if made.found is None:
        return
    table = new_table("SITE", "PLAN", "REPLICAS", "P95", "COST/H", "BUSY HERE", "BREAKS")
    for site in sizing.snapshots:
        planned = made.found.plans.get(site)
        if planned is None:
            table.add_row(site, "(nothing can serve it)")
            continue
        table.add_row(
            site,
            str(planned.plan),
            "+".join(stage.capacity for stage in planned.plan.stages),
            milliseconds(planned.predicted.p95_seconds),
            number(planned.predicted.cost_per_hour, ".2f"),
            number(made.pooling.loads.get(site, 0.0), ".2f"),
            ", ".join(planned.violations),
        )
    out.print(table)


def _reasons(made: Sized, now: float) -> list[str]:
    lines = []
    if made.found is not None:
        busy = sum(made.pooling.loads.values())
        lines.append(
            f"The best plan of all sites takes {made.wanted} replicas, {made.enough} at the far edge of the dead band;"
            f" {busy:.2f} are planned to be busy"
        )
    since = made.pooling.low_since
    window = f", {now - since:.0f} s so far" if since is not None else ""
    held = [f"{gate} ({_GATES[gate]}{window if gate == 'scale-down' else ''})" for gate in made.gates]
    return [*lines, f"Held by gate: {', '.join(held)}" if held else "Held by no gate"]


def _told(pool: Pool | None) -> str:
    if pool is None:
        return "nothing shared"
    batched = "" if pool.batched is None else f", batched from cut {pool.batched[0]} in {pool.batched[1]}"
    return f"{pool.replicas} replicas of cuts {pool.first}-{pool.last}{batched}"


def show_grants(found: RecordedGrants, pipeline: str) -> None:
    """Print who was granted what, and why; of all claims, or that of one pipeline."""
    if found.settling is None:
        out.print(f"Grants: {found.words}", markup=False)
        return
    settling = found.settling
    settled = settling.settled
    rows = told(settling.claims, settling.rooms, settled)
    first = sum(number == 0 for number in settled.chosen)
    heading = f"{len(settling.claims)} pipelines on {len(settling.rooms)} nodes: {first} have their first wish"
    lines = [
        f"{heading}; at most {settled.gap:.1%} is lost",
        _replayed(settling),
        *(_answered(answer, rows) for answer in settled.answers),
    ]
    for line in lines:
        out.print(line, markup=False)
    table = new_table("PIPELINE", "PRIORITY", "ASKED", "GOT", "LOAD", "COST/H", "KEEPS LIMITS", "WHY")
    for row in rows:
        if not pipeline or row.claim.pipeline == pipeline:
            table.add_row(*_cells(row))
    out.print(table)


def _replayed(settling: Settling) -> str:
    # HiGHS takes a quarter of a second to load.
    from splitplane.planner.highs import solve

    made = settling.again(solve)
    if made == settling.settled:
        return _AGAIN
    if any(answer.stopped for answer in (*settling.settled.answers, *made.answers)):
        return "Made again: not the same, as the time limit stopped the solver"
    return "Made again by this version: not the same"


def _answered(answer: Answer, rows: tuple[Granted, ...]) -> str:
    claims = [row for row in rows if row.claim.priority == answer.priority]
    less = sum(row.why != "its first wish" for row in claims)
    stopped = ", whose solver was stopped by its time limit" if answer.stopped else ""
    return (
        f"Priority {answer.priority}: {len(claims)} claims, {less} of them with less than their first wish, by the"
        f" {answer.by} answer{stopped}; at most {answer.gap:.1%} is lost"
    )


def _cells(row: Granted) -> tuple[str, ...]:
    offer = row.offer
    return (
        row.claim.pipeline,
        str(row.claim.priority),
        _counted(row.asked),
        _counted(row.got) if any(row.got.values()) else "nothing",
        f"{offer.carried:.0%}" if offer else "0%",
        number(offer.cost, ".2f") if offer else "-",
        "yes" if offer and offer.keeps_limits else "no",
        row.why,
    )


def _counted(replicas: Mapping[str, int]) -> str:
    return ", ".join(f"{tier}: {count}" for tier, count in replicas.items() if count) or "none of these nodes"
