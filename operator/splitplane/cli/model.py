"""``splitplane model``: what a model can be cut into, and whether its parts give what the whole gives."""

import json
import logging
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitplane.cli.plans import out
from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.domain.profiles import CODECS, TensorSpec

if TYPE_CHECKING:
    from splitplane.model import ModelSource

app = typer.Typer(no_args_is_help=True, help="Look at a model as Splitplane sees it. Needs splitplane[runtime].")

Factory = Annotated[str, typer.Argument(metavar="FACTORY", help="As in spec.model.factory: module:callable.")]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input", metavar="NAME:TYPE:SHAPE",
        help="As in spec.model.inputs: frames:FP32:-1,1024. A named size is free: ids:INT64:-1,tokens=128.",
    ),
]  # fmt: skip
Folder = Annotated[
    list[Path] | None, typer.Option("--path", help="A folder in which the factory's module lies.", file_okay=False)
]
Sha256 = Annotated[str | None, typer.Option(help="The digest that the weights file must have.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SHAPE_ENTRY = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<size>[1-9]\d*)")


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
    source = _source(factory, inputs, weights, sha256, path)
    from splitplane.model import ModelError, export

    try:
        with Console(stderr=True).status(f"exporting {factory}"):
            graph = export(source)
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        rows = [
            {
                "name": cut.name,
                "tensors": {each.name: [each.datatype, *each.declared_shape] for each in cut.tensors},
                "wireBytes": dict(cut.wire_bytes),
                "weightBytesAfter": graph.weight_bytes[cut.index] if cut.index < len(graph.segments) else 0,
            }
            for cut in graph.cuts
        ]
        report = {"fingerprint": graph.fingerprint, "cuts": rows, "refusal": str(graph.refusal or "") or None}
        typer.echo(json.dumps(report, indent=2))
        return
    table = Table("cut", "after", "what crosses", *(f"{codec}, kB" for codec in CODECS), "weights to the next, MB")
    for column in table.columns[3:]:
        column.justify = "right"
    for cut in graph.cuts:
        table.add_row(
            str(cut.index),
            cut.name,
            ", ".join(f"{each.datatype} {list(each.declared_shape)}" for each in cut.tensors),
            *(f"{cut.wire_bytes[codec] / 1e3:.1f}" for codec in CODECS),
            f"{graph.weight_bytes[cut.index] / 1e6:.1f}" if cut.index < len(graph.segments) else "",
        )
    out.print(table)
    if graph.refusal is not None:
        out.print(f"Cannot be split, and is served whole: {graph.refusal}", markup=False, soft_wrap=True)


@app.command()
def check(
    factory: Factory,
    inputs: Inputs,
    weights: Annotated[str, typer.Option(help="As in spec.model.weights.uri, such as file:///...safetensors.")],
    sha256: Sha256 = None,
    path: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Cut a model at every cut, run both sides in processes of their own, and compare with the whole model (fp32)."""
    source = _source(factory, inputs, weights, sha256, path)
    from splitplane.model import ModelError
    from splitplane.model.equivalence import BATCHES, TOLERANCE, compare
    from splitplane.model.samples import sample

    samples = {batch: sample(source.inputs, batch=batch) for batch in BATCHES}
    try:
        with Console(stderr=True).status(f"exporting {factory}") as status:
            differences = compare(source, samples, progress=lambda way: status.update(f"compared {way}"))
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    worst: defaultdict[str, float] = defaultdict(float)
    for each in differences:
        name = f"cut {each.way[1]}" if len(each.way) > 2 else "no cut"
        worst[name] = max(worst[name], each.error)
    right = all(largest <= TOLERANCE for largest in worst.values())
    if as_json:
        # JSON knows no infinity, which stands for a NaN or for other integers.
        told = {name: largest if largest <= sys.float_info.max else None for name, largest in worst.items()}
        typer.echo(json.dumps({"equal": right, "tolerance": TOLERANCE, "largestRelativeError": told}, indent=2))
    else:
        table = Table("divided at", f"largest error at batch {', '.join(map(str, BATCHES))}", "")
        for name, largest in worst.items():
            table.add_row(name, f"{largest:.1e}", "equal" if largest <= TOLERANCE else "DIFFERS")
        out.print(table)
    if not right:
        raise typer.Exit(1)


def _source(
    factory: str, inputs: list[str], weights: str | None, sha256: str | None, folders: list[Path] | None
) -> "ModelSource":
    """Raises ``typer.BadParameter`` that says what to write instead, or what to install."""
    specs = tuple(_input(text) for text in inputs)
    try:
        from splitplane.model import ModelSource
    except ImportError as error:
        raise typer.BadParameter(f"{error}: pip install 'splitplane[runtime]'") from error
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # how far a download is
    sys.path[:0] = [str(folder.resolve()) for folder in folders or ()]
    return ModelSource(factory.partition(":")[0], factory, weights, sha256.lower() if sha256 else None, specs)


def _input(text: str) -> TensorSpec:
    name, _, rest = text.partition(":")
    datatype, _, shape = rest.partition(":")
    batch, *sizes = shape.split(",")
    found = [_SHAPE_ENTRY.fullmatch(size.strip()) for size in sizes]
    if not name or datatype not in DATATYPE_BYTES or batch.strip() != "-1" or None in found:
        types = ", ".join(DATATYPE_BYTES)
        raise typer.BadParameter(f"input {text!r} is not of the form frames:FP32:-1,1024 with one of {types}")
    entries = [match for match in found if match]
    free = tuple(match["name"] for match in entries)
    return TensorSpec(name, datatype, tuple(int(match["size"]) for match in entries), free if any(free) else ())
