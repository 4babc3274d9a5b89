"""``splitplane model``: what a model can be cut into, whether its parts give what the whole gives, what they take."""

import json
import os
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitplane.cli.calibrated import leak_along, leak_controls, leak_dict, leak_table
from splitplane.cli.models import AsJson, Factory, Folder, Inputs, Sha256, source_of
from splitplane.cli.plans import out
from splitplane.cli.profiles import MeasureProgress, own_weights, plotting, profile_tables
from splitplane.domain.profiles import BASE_CODECS, held_bytes
from splitplane.domain.profiles_io import to_dict

app = typer.Typer(no_args_is_help=True, help="Look at a model as Splitplane sees it. Needs splitplane\\[runtime].")


@app.command()
def inspect(
    factory: Factory,
    inputs: Inputs,
    weights: Annotated[str | None, typer.Option(help="As in spec.model.weights.uri; not needed to look.")] = None,
    sha256: Sha256 = None,
    path: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Export a model and list its cuts: what crosses each, in how many bytes, and the weights between them."""
    source = source_of(factory, inputs, weights, sha256, path)
    from splitplane.model import ModelError, export

    try:
        with Console(stderr=True).status(f"exporting {factory}"):
            graph = export(source)
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    work, held = graph.work(), held_bytes(graph.weight_bytes, graph.tied, 0, len(graph.segments))
    if as_json:
        rows = [
            {
                "name": cut.name,
                "tensors": {each.name: [each.datatype, *each.declared_shape] for each in cut.tensors},
                "wireBytes": dict(cut.wire_bytes),
                "weightBytesAfter": graph.weight_bytes[cut.index] if cut.index < len(graph.segments) else 0,
                "flopsAfter": work[cut.index].flops if cut.index < len(graph.segments) else 0,
                "movedBytesAfter": work[cut.index].moved_bytes if cut.index < len(graph.segments) else 0,
            }
            for cut in graph.cuts
        ]
        report = {"fingerprint": graph.fingerprint, "cuts": rows, "weightBytes": held, "verdict": graph.verdict}
        typer.echo(json.dumps(report, indent=2))
        return
    table = Table(
        "cut",
        "after",
        "what crosses",
        *(f"{codec}, kB" for codec in BASE_CODECS),
        "weights to the next, MB",
        "MFLOP",
        "moved, MB",
    )
    for column in table.columns[3:]:
        column.justify = "right"
    for cut in graph.cuts:
        table.add_row(
            str(cut.index),
            cut.name,
            ", ".join(f"{each.datatype} {list(each.declared_shape)}" for each in cut.tensors),
            *(f"{cut.wire_bytes[codec] / 1e3:.1f}" for codec in BASE_CODECS),
            *(
                (
                    f"{graph.weight_bytes[cut.index] / 1e6:.1f}",
                    f"{work[cut.index].flops / 1e6:.1f}",
                    f"{work[cut.index].moved_bytes / 1e6:.1f}",
                )
                if cut.index < len(graph.segments)
                else ()
            ),
        )
    out.print(table)
    if graph.tied:
        whole = f"the whole model holds {held / 1e6:.1f} MB"
        out.print(f"Weights that several segments share count in each of them; {whole}.", soft_wrap=True)
    if graph.verdict is not None:
        out.print(f"{factory} {graph.verdict}", markup=False, soft_wrap=True)


@app.command()
def check(
    factory: Factory,
    inputs: Inputs,
    weights: Annotated[str, typer.Option(help="As in spec.model.weights.uri, such as file:///...safetensors.")],
    sha256: Sha256 = None,
    path: Folder = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Real inputs to compare on, instead of random ones at several sizes."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cut a model at every cut, run both sides in processes of their own, and compare with the whole model (fp32)."""
    source = source_of(factory, inputs, weights, sha256, path)
    from splitplane.model import ModelError
    from splitplane.model.calibration import read_calibration
    from splitplane.model.equivalence import BATCHES, TOLERANCE, Draw, Samples, compare
    from splitplane.model.samples import drawn_batches

    given: Samples | Draw = partial(drawn_batches, batches=BATCHES)
    batches: tuple[int, ...] = BATCHES
    notes: list[str] = []
    try:
        if calibration is not None:
            real = read_calibration(calibration, source.inputs, most=max(BATCHES))
            batches = tuple(batch for batch in BATCHES if batch <= real.samples)
            given = {batch: real.first(batch).inputs for batch in batches}
        with Console(stderr=True).status(f"exporting {factory}") as status:
            differences = compare(
                source, given, progress=lambda way: status.update(f"compared {way}"), note=notes.append
            )  # fmt: skip
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    worst: defaultdict[str, float] = defaultdict(float)
    failures: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for each in differences:
        name = f"cut {each.way[1]}" if len(each.way) > 2 else "no cut"
        worst[name] = max(worst[name], each.error)
        if each.failure:
            failures[name][each.batch] = each.failure
    right = all(largest <= TOLERANCE for largest in worst.values())
    if as_json:
        # JSON knows no infinity, which stands for another shape, integer or NaN, and for what failed.
        told = {name: largest if largest <= sys.float_info.max else None for name, largest in worst.items()}
        report = {
            "equal": right,
            "tolerance": TOLERANCE,
            "largestRelativeError": told,
            "failures": failures,
            "notes": notes,
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        table = Table("divided at", f"largest error at batch {', '.join(map(str, batches))}", "")
        for name, largest in worst.items():
            verdict = "FAILS" if name in failures else "equal" if largest <= TOLERANCE else "DIFFERS"
            table.add_row(name, f"{largest:.1e}", verdict)
        out.print(table)
        for name, by_batch in failures.items():
            for batch, why in by_batch.items():
                out.print(f"{name}, batch {batch}: {why}", markup=False, soft_wrap=True)
        for text in notes:
            out.print(f"{factory}: {text}.", markup=False, soft_wrap=True)
    if not right:
        raise typer.Exit(1)


@app.command()
def profile(
    factory: Factory,
    inputs: Inputs,
    weights: Annotated[
        str | None, typer.Option(help="As in spec.model.weights.uri; without it the factory's own values are timed.")
    ] = None,
    sha256: Sha256 = None,
    path: Folder = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes beside 1.", show_default="4 16")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.", show_default="all cores")] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for measuring, once the model is loaded.")] = 30.0,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw time, bytes and leak along the depth. Needs splitplane\\[plot].", dir_okay=False),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Real inputs, on which the leak of up to 6 cuts is measured."),
    ] = None,
    leak_seconds: Annotated[float, typer.Option(min=1.0, help="Time for that.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Measure a model on this machine as a profile job does on a node: time along the depth, codecs, bytes, memory."""
    source = source_of(factory, inputs, weights, sha256, path)
    draw = plotting(plot) if plot is not None else None
    from splitplane.model import ModelError, libraries
    from splitplane.runtime.profiling import profile_model

    most = threads or os.cpu_count() or 1
    libraries.use_threads(most)
    try:
        with MeasureProgress(Console(stderr=True)) as progress, own_weights(source) as given:
            result = profile_model(
                given, "this-machine", say=progress.say, progress=progress.measured, budget_seconds=seconds,
                batches=tuple(sorted({1, *(batch or (4, 16))})),
            )  # fmt: skip
            leaked, refusal = None, ""
            if calibration is not None:
                try:
                    leaked = leak_along(
                        given, calibration, budget_seconds=leak_seconds, threads=most, progress=progress.measured
                    )
                except ModelError as error:  # what was measured by then is told all the same
                    refusal = str(error)
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    names = [cut.name for cut in result.profile.cuts]
    if as_json:
        leak_found = {} if leaked is None else {"leak": leak_dict(leaked, names)}
        typer.echo(json.dumps({**to_dict(result), **leak_found}, indent=2))
    else:
        for table in profile_tables(result):
            out.print(table)
        if leaked is not None:
            out.print(leak_table(leaked, names))
            out.print(leak_controls(leaked))
    if draw is not None:
        draw(result, leaked)
        typer.echo(f"drawn: {plot}", err=True)
    if refusal:
        raise typer.BadParameter(f"the leak was not measured: {refusal}")
