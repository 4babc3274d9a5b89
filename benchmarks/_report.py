"""How every benchmark reports: a table for people, ``build/bench/<target>.json`` for machines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"


class Row(TypedDict):
    """One number. ``baseline`` is what ``value`` is compared with, in the same unit (a measurement made in the same
    run, or a limit), and ``ratio`` is value / baseline; both are ``None`` where there is nothing to compare with."""

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None


def row(name: str, value: float, unit: str, baseline: float | None = None) -> Row:
    ratio = value / baseline if baseline else None
    return {"name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio}


def write(target: str, rows: Iterable[Row]) -> Path:
    """Print the rows and write them; returns the file's path."""
    rows = list(rows)
    table = Table("name", title=target)
    for column in ("value", "unit", "baseline", "ratio"):
        table.add_column(column, justify="left" if column == "unit" else "right")
    for each in rows:
        table.add_row(each["name"], _text(each["value"]), each["unit"], _text(each["baseline"]), _text(each["ratio"]))
    console = Console()
    console.print(table)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{target}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"written to {path.relative_to(FOLDER.parent.parent)}")
    return path


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"
