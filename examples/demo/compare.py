"""Both demos side by side, as docs/kind.md has them: ``make demo kind-demo demo-table``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("plan", "why", "p95 predicted / observed, ms", "new plan after, s", "requests: failed, late, all")


def cells(step: dict[str, Any]) -> tuple[str, ...]:
    """One step of a report in the order of ``COLUMNS``; nothing in place of seconds for the first plan."""
    plan, _, replicas = str(step["planAfter"]).partition(" (")
    counts = " + ".join(part.split()[0] for part in replicas.rstrip(")").split(", "))
    seconds = f"{step['secondsToNewPlan']:.0f}" if step["secondsToNewPlan"] else ""
    return (
        f"`{plan}`, {counts}".replace("|", "\\|"),
        str(step["reason"]),
        f"{step['predictedP95Ms']:.0f} / {step['observedP95Ms']:.0f}",
        seconds,
        f"{step['failed']}, {step['overLimit']}, {step['requests']}",
    )


def table(embedded: list[dict[str, Any]], kind: list[dict[str, Any]]) -> str:
    """Markdown: for each column the embedded cluster's cell, then kind's."""
    head = ["step", *(f"{column}: {where}" for column in COLUMNS for where in ("embedded", "kind"))]
    rows = [head, ["---"] * len(head)]
    for one, other in zip(embedded, kind, strict=True):
        pairs = (
            (cell, "the same" if cell == that and column in ("plan", "why") else that)
            for column, cell, that in zip(COLUMNS, cells(one), cells(other), strict=True)
        )
        rows.append([one["name"], *(cell for pair in pairs for cell in pair)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embedded", nargs="?", type=Path, default=Path("build/demo/report.json"))
    parser.add_argument("kind", nargs="?", type=Path, default=Path("build/kind-demo/report.json"))
    given = parser.parse_args()
    reports = (json.loads(path.read_text())["steps"] for path in (given.embedded, given.kind))
    sys.stdout.write(table(*reports) + "\n")


if __name__ == "__main__":
    main()
