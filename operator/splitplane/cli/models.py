"""What the commands on models share: how a model is named on the command line."""

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from splitplane.domain.codecs import DATATYPE_BYTES
from splitplane.domain.profiles import TensorSpec

if TYPE_CHECKING:
    from splitplane.model import ModelSource

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


def source_of(
    factory: str, inputs: list[str], weights: str | None, sha256: str | None, folders: list[Path] | None
) -> "ModelSource":
    """A model whose weights are on this machine, or are fetched now, and how far that is is told.

    Raises ``typer.BadParameter`` that says what to write instead, or what to install.
    """
    specs = tuple(_input(text) for text in inputs)
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise typer.BadParameter(f"input {', '.join(twice)} is given more than once")
    try:
        from splitplane.model import ModelError, ModelSource
        from splitplane.model.remote import SCHEMES
        from splitplane.model.weights import WeightsFile
    except ImportError as error:
        raise typer.BadParameter(f"{error}: pip install 'splitplane[runtime]'") from error
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # how far a download is
    sys.path[:0] = [str(folder.resolve()) for folder in folders or ()]
    source = ModelSource(factory, factory, weights, sha256.lower() if sha256 else None, specs)
    if weights is not None and urlsplit(weights).scheme in SCHEMES:
        try:
            WeightsFile.open(source)
        except ModelError as error:
            raise typer.BadParameter(str(error)) from error
    return source


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
