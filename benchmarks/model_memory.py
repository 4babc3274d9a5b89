"""Peak memory of a process that holds a part of a model, as a stage does, against one that holds all of it."""

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict

from benchmarks._report import Row, row
from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource

WEIGHTS, BASELINE = 1.15, 1.1
"""A part may take so many times its weights, and so many times what a stage takes that holds nothing (its libraries and
those of the model's factory, no graph), besides its activations."""
MEGABYTE = 1e6


def memory(sources: Mapping[str, ModelSource]) -> list[Row]:
    """Megabytes at the peak, of the first third of each model against the limit and against the whole model."""
    rows = []
    for name, source in sources.items():
        empty, part, whole = (_measured(source, what) for what in ("empty", "third", "whole"))
        limit = WEIGHTS * part["weights"] + BASELINE * empty["peak"] + part["activations"]
        told = f"first third of {name}, {part['weights'] / MEGABYTE:.0f} of {whole['weights'] / MEGABYTE:.0f} MB"
        rows += [
            row(f"model: memory of a stage of {name} that holds nothing", empty["peak"] / MEGABYTE, "MB"),
            row(f"model: memory of the {told}, against its limit", part["peak"] / MEGABYTE, "MB", limit / MEGABYTE),
            row("model: the same against a pod of the whole", part["peak"] / MEGABYTE, "MB", whole["peak"] / MEGABYTE),
        ]
    return rows


def _measured(source: ModelSource, what: str) -> dict[str, int]:
    """In a process of its own, with all that a stage imports."""
    command = [sys.executable, "-m", "benchmarks.model_memory", json.dumps(asdict(source)), what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _measure(source: ModelSource, what: str) -> dict[str, int]:
    import torch

    from splitplane.model import export, libraries, load_weights
    from splitplane.model.memory import peak_bytes, reset_peak, resident_bytes
    from splitplane.model.samples import sample, table_rows
    from splitplane.runtime.stage import server  # noqa: F401 - it is resident in every stage

    libraries.use_threads(1)
    if what == "empty":
        module, _, name = source.factory.partition(":")
        with torch.device("meta"):  # no graph and no weights, but a factory may import its libraries only when called
            getattr(importlib.import_module(module), name)()
        return {"peak": peak_bytes(), "weights": 0, "activations": 0}
    graph = export(source)
    assert graph.program is not None
    last = len(graph.segments) // 3 if what == "third" else len(graph.segments)
    partition = load_weights(graph, 0, last)
    loading = peak_bytes()
    before = resident_bytes()
    reset_peak()
    ids = {name: range(rows) for name, rows in table_rows(graph.program.traced).items()}
    partition.run(0, last, sample(graph.inputs, ids=ids))
    running = peak_bytes()
    return {
        "peak": max(loading, running),
        "weights": graph.program.weight_bytes(0, last),
        "activations": max(0, running - before),
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["inputs"] = tuple(
        TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"]), tuple(spec["free"]))
        for spec in given["inputs"]
    )
    print(json.dumps(_measure(ModelSource(**given), sys.argv[2])))
