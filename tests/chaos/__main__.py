"""Does every fault to a cluster under load and tells what clients saw: ``python -m tests.chaos [FAULT ...]``.

What was measured is kept in ``build/chaos``, so that a run of some faults replaces their rows only; with ``--write``
the table of all goes into docs/faults.md, to each kind of cluster its own.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from splitplane.local.errors import LocalError
from tests.chaos import embedded
from tests.chaos.faults import FAULTS, ON_KIND, Fault, Told
from tests.chaos.records import Measured, measure
from tests.chaos.site import RATE, Site

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
IN_FLIGHT = round(RATE)
"""Most requests of a client that may be inside a gateway when it dies: a second's, for it has stood still for half of
one, a node takes a moment to end, and REST clients may all have their connections to the same gateway."""
Rows = dict[str, Measured | None]


def play(fault: Fault, where: Site, scale: float) -> Measured:
    """Raises ``AssertionError`` when the fault says so, or the cluster does not become as it was before."""
    where.wait_calm()
    before = where.running()
    start = time.time()
    done = fault.run(where, scale)
    told = done if isinstance(done, Told) else Told(done, ())
    where.wait_calm()
    where.wait_gone(before)
    ended = told.spans[-1][1] if told.flaps else None
    return measure(fault.key, where.ended(start, time.time()), note=told.note, ended=ended, spans=told.spans)


def kept_promise(fault: Fault, measured: Measured) -> bool:
    most = IN_FLIGHT if fault.may_resend else 0
    return measured.failed == 0 and max(measured.resent_grpc, measured.resent_rest) <= most


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where faults can be done."""

    faults: tuple[Fault, ...]
    kept: Path
    """What was measured, by fault; ``null`` of one that failed, so that no earlier row passes for this one."""
    begin: str
    """The line of docs/faults.md before its table."""

    @property
    def end(self) -> str:
        return self.begin.replace("measured", "end")

    def rows(self) -> Rows:
        return (
            {key: row and Measured(**row) for key, row in json.loads(self.kept.read_text()).items()}
            if self.kept.exists()
            else {}
        )

    def keep(self, rows: Rows) -> None:
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self.kept.write_text(json.dumps({key: row and asdict(row) for key, row in rows.items()}, indent=2) + "\n")

    def site(self, say: Callable[[str], None]) -> AbstractContextManager[Site]:
        if self.faults is FAULTS:
            return embedded.site(say)
        from tests.chaos import kind  # only there is hack/kind-node on the path

        return kind.site(say)


KEPT = ROOT / "build" / "chaos"
CLUSTERS = {
    "embedded": Cluster(FAULTS, KEPT / "measured.json", "<!-- measured -->\n"),
    "kind": Cluster(ON_KIND, KEPT / "measured-on-kind.json", "<!-- measured on kind -->\n"),
}


def line(name: str, row: Measured | None) -> str:
    if row is None:
        return f"| {name} | FAILED | | | | | | |"
    return (
        f"| {name} | {row.requests} | {row.failed} | {row.resent_grpc} | {row.resent_rest} "
        f"| {row.recovered_seconds:.1f} s | {row.p99_milliseconds:.0f} ms | {row.note} |"
    )


def table(rows: Rows, faults: tuple[Fault, ...], before: str = "") -> str:
    """The rows measured here; of other faults, those of the table before."""
    told = {old.split("|")[1].strip(): old for old in before.splitlines()}
    told |= {fault.name: line(fault.name, rows[fault.key]) for fault in faults if fault.key in rows}
    lines = [
        "| fault | requests | failed | sent again over gRPC | over REST | time to recover | p99 during | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *(told[fault.name] for fault in faults if fault.name in told),
    ]
    return "\n".join(lines) + "\n"


def write_page(rows: Rows, cluster: Cluster) -> None:
    before, rest = PAGE.read_text().split(cluster.begin)
    old, after = rest.split(cluster.end)
    PAGE.write_text(before + cluster.begin + table(rows, cluster.faults, old) + cluster.end + after)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="which ones (default: all)")
    parser.add_argument("--on", choices=CLUSTERS, default="embedded", help="the cluster (default: embedded)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each fault's repetitions and length")
    parser.add_argument("--keep-going", action="store_true", help="go on after a fault from which nothing recovered")
    parser.add_argument("--write", action="store_true", help="write the table into docs/faults.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cluster goes, as after Ctrl-C
    cluster = CLUSTERS[options.on]
    if unknown := set(options.faults) - {fault.key for fault in cluster.faults}:
        parser.error(f"no such fault on {options.on}: {' '.join(unknown)}")
    chosen = [fault for fault in cluster.faults if not options.faults or fault.key in options.faults]
    out = Console(highlight=False)
    kept = cluster.rows()
    broken, failed = [], 0
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("Starting", total=len(chosen))
        with cluster.site(lambda text: progress.update(task, description=text)) as where:
            for fault in chosen:
                progress.update(task, description=fault.name)
                try:
                    row = play(fault, where, options.scale)
                except AssertionError as error:
                    out.print(f"{fault.name}: {error}")
                    broken.append(fault.name)
                    kept[fault.key] = None
                    if options.scale == 1.0:
                        cluster.keep(kept)
                    if not options.keep_going:
                        break
                    continue
                finally:
                    errors = [record.error for record in where.between(0, time.time()) if record.error]
                progress.advance(task)
                kept[fault.key] = row
                failed += row.failed
                if options.scale == 1.0:
                    cluster.keep(kept)
                out.print(f"{fault.name}: {row}")
                if not kept_promise(fault, row):
                    broken.append(fault.name)
                    out.print(*errors[-5:], sep="\n")
    if beside := sum(not record.ok for record in where.all) - failed:
        broken.append(f"{beside} requests failed beside what the rows tell")
    if options.write:
        write_page(kept, cluster)
    out.print(
        f"{RATE:.0f} requests/s over gRPC, and as many over REST. "
        + (f"Not as promised: {', '.join(broken)}" if broken else "All as promised.")
    )
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LocalError as error:
        sys.exit(f"Error: {error}")
