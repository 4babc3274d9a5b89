"""Does every fault to a cluster under load and tells what clients saw: ``python -m tests.chaos [FAULT ...]``.

What was measured is kept in ``build/chaos/measured.json``, so that a run of some faults replaces their rows only; with
``--write`` the table of all goes into docs/faults.md.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.records import Measured, measure
from tests.chaos.site import RATE, Site, site

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "chaos" / "measured.json"
PAGE = ROOT / "docs" / "faults.md"
IN_FLIGHT = 10
"""Most requests that may be on their way through a gateway when it dies: half a second's."""
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


def play(fault: Fault, where: Site, scale: float) -> Measured:
    """Raises ``AssertionError`` when the cluster does not become as it was before."""
    where.wait_calm()
    start = time.time()
    note = fault.run(where, scale)
    where.wait_calm()
    return measure(fault.key, where.between(start, time.time() - 1.0), note=note)


def kept_promise(fault: Fault, measured: Measured) -> bool:
    return measured.failed == 0 and measured.resent <= (IN_FLIGHT if fault.may_resend else 0)


def table(rows: dict[str, Measured], before: str = "") -> str:
    """The rows measured here; of other faults, those of the table before."""
    told = {line.split("|")[1].strip(): line for line in before.splitlines()}
    told |= {
        fault.name: f"| {fault.name} | {row.requests} | {row.failed} | {row.resent} | {row.recovered_seconds:.1f} s "
        f"| {row.p99_milliseconds:.0f} ms | {row.note} |"
        for fault in FAULTS
        if (row := rows.get(fault.key)) is not None
    }
    lines = [
        "| fault | requests | failed | sent again by the client | time to recover | p99 during | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *(told[fault.name] for fault in FAULTS if fault.name in told),
    ]
    return "\n".join(lines) + "\n"


def keep(rows: dict[str, Measured]) -> None:
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps({key: asdict(row) for key, row in rows.items()}, indent=2) + "\n")


def write_page(rows: dict[str, Measured]) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    old, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table(rows, old) + END + after)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[[], *(fault.key for fault in FAULTS)], metavar="FAULT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each fault's repetitions and length")
    parser.add_argument("--keep-going", action="store_true", help="go on after a fault from which nothing recovered")
    parser.add_argument("--write", action="store_true", help="write the table into docs/faults.md")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.faults or fault.key in options.faults]
    out = Console(highlight=False)
    kept = {key: Measured(**row) for key, row in json.loads(KEPT.read_text()).items()} if KEPT.exists() else {}
    broken = []
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("Starting", total=len(chosen))
        with site(lambda text: progress.update(task, description=text)) as where:
            for fault in chosen:
                progress.update(task, description=fault.name)
                try:
                    row = play(fault, where, options.scale)
                except AssertionError as error:
                    out.print(f"{fault.name}: {error}")
                    broken.append(fault.name)
                    if not options.keep_going:
                        break
                    continue
                finally:
                    errors = [record.error for record in where.between(0, time.time()) if record.error]
                progress.advance(task)
                kept[fault.key] = row
                if options.scale == 1.0:
                    keep(kept)
                out.print(f"{fault.name}: {row}")
                if not kept_promise(fault, row):
                    broken.append(fault.name)
                    out.print(*errors[-5:], sep="\n")
    if options.write:
        write_page(kept)
    out.print(f"{RATE:.0f} requests/s. " + (f"Not as promised: {', '.join(broken)}" if broken else "All as promised."))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
