"""``torch.export`` of a module with every free dimension free. This is the only module that calls it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes

from splitplane.model.errors import NotSplittableError
from splitplane.model.refusals import describe, line_of_operation
from splitplane.model.sizes import BATCH
from splitplane.model.source import ModelSource, bind_inputs
from splitplane.model.watching import CallWatch

REFINEMENTS = 4
"""How often an export is repeated with the constraints on sizes that the one before found."""


def export_program(
    source: ModelSource, module: nn.Module, arguments: Mapping[str, object], watch: CallWatch
) -> ExportedProgram:
    """Export with every free dimension free, taking over the constraints on them that torch finds.

    Raises :class:`NotSplittableError`.
    """
    dimensions: dict[str, Any] = {BATCH: Dim(BATCH)}
    by_input: dict[str, Any] = {}
    for spec in source.inputs:
        names = spec.free or (None,) * len(spec.shape)
        free = {index: dimensions.setdefault(name, Dim(name)) for index, name in enumerate(names, 1) if name}
        by_input[spec.name] = {0: dimensions[BATCH], **free}
    shapes: Any = bind_inputs(source, module, by_input)
    with torch.no_grad(), _quiet():
        for _ in range(REFINEMENTS):
            try:
                program = torch.export.export(module, (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
                if any(_mutates(node) for node in program.graph.nodes):
                    program = program.run_decompositions({})
                return program
            except UserError as error:
                refined = _refined(str(error), shapes)
                if refined is None:
                    raise NotSplittableError(
                        f"torch.export of {source.factory} failed: {describe(error)}",
                        line_of_operation(*watch.demands, error),
                    ) from error
                shapes = refined
            except Exception as error:  # torch.export raises many types, and runs the tenant's code
                raise NotSplittableError(
                    f"torch.export of {source.factory} failed: {describe(error)}", line_of_operation(error)
                ) from error
    raise NotSplittableError(f"torch.export of {source.factory} finds ever new constraints on its sizes: {shapes}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch says about the tenant's code and its own internals: a failure has its own message."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was, log.disabled = log.disabled, True
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was


def _refined(message: str, shapes: dict[str, Any]) -> dict[str, Any] | None:
    """Shapes with the constraints that torch suggests, if they are no worse than a narrower range or a multiple."""
    told, heading, rest = message.partition("Suggested fixes:")
    fixes = rest.partition("\n\n")[0]
    try:
        refined: Any = refine_dynamic_shapes_from_suggested_fixes(told + heading + fixes, shapes)
    except Exception:  # there is no suggestion, or it cannot be read
        return None
    fixed = any(isinstance(dim, int) for dims in refined.values() for dim in dims.values())
    return None if fixed or str(refined) == str(shapes) else refined


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
