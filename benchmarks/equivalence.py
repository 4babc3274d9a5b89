"""Every architecture at its true size, cut at every cut: both sides in processes of their own, against the eager model.

Slow (half a minute to several minutes for a model), so no part of `make test`, which tries small models of the same
structure. Weights are random, but for the trained ones; one model after another, on one thread.

    make sweep-models                        # all of them
    make sweep-models MODELS="gpt2 vit_b"    # some; build/bench/equivalence.json keeps the others' results
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from benchmarks._report import FOLDER
from splitplane.model.equivalence import TOLERANCE, compare
from splitplane.model.graphs import export
from tests.support.model_zoo import FULL, TRAINED

BATCHES = (1, 3, 8)


class Result(TypedDict):
    """Of one model: the largest relative error at any cut and batch size, and what the trial took."""

    cuts: int
    megabytes: float
    exporting: float
    error: float
    seconds: float


def main(names: Iterable[str]) -> bool:
    """Try these models, or all; prints a table. Whether all are within the tolerance."""
    models = {model.name: model for model in (*FULL, *TRAINED)}
    path = FOLDER / "equivalence.json"
    results: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in list(names) or models:
        with tempfile.TemporaryDirectory(prefix="splitplane-sweep-") as folder, Console().status(name):
            source = models[name].source(Path(folder))
            started = time.perf_counter()
            graph = export(replace(source, weights_uri=None))
            exported = time.perf_counter()
            differences = compare(source, models[name].samples(BATCHES))
            results[name] = {
                "cuts": len(graph.cuts),
                "megabytes": (graph.program.weight_bytes(0, len(graph.segments)) if graph.program else 0) / 1e6,
                "exporting": exported - started,
                "error": max(each.error for each in differences),
                "seconds": time.perf_counter() - exported,
            }
        path.write_text(json.dumps(results, indent=2) + "\n")
        print(name, results[name], flush=True)
    table = Table("model", "weights, MB", "cuts", "export, s", "largest relative error", "trial, s")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, each in results.items():
        table.add_row(
            name, f"{each['megabytes']:.0f}", str(each["cuts"]), f"{each['exporting']:.1f}", f"{each['error']:.1e}",
            f"{each['seconds']:.0f}",
        )  # fmt: skip
    Console().print(table)
    return all(each["error"] <= TOLERANCE for each in results.values())


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
