"""``torch.export`` of a module with every free dimension free. This is the only module that calls it."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.utils._pytree import tree_leaves

from splitplane.model.errors import FactoryError, NotSplittableError
from splitplane.model.recurrent import RECURRENT, told_by_shape
from splitplane.model.refusals import burnt_in, describe, line_of_operation
from splitplane.model.sizes import BATCH
from splitplane.model.source import ModelSource, bind_inputs
from splitplane.model.watching import CallWatch

REFINEMENTS = 8
"""How often an export is repeated with the constraints on sizes that the last one found, or with larger least sizes."""

_SHAPES: Any = torch.fx.experimental._config
_REGIONS = frozenset({torch.ops.higher_order.wrap_with_autocast, torch.ops.higher_order.wrap_with_set_grad_enabled})
"""What torch makes of ``with torch.autocast(...)`` and of ``with torch.enable_grad()``: one operator for all within."""
_CONSTRAINED = re.compile(r"Not all values of (\w+) = ")


def export_program(
    source: ModelSource, module: nn.Module, arguments: Mapping[str, object], watch: CallWatch, *, unproven: bool = False
) -> ExportedProgram:
    """Export with every free dimension free, taking over the constraints on them that torch finds.

    Where torch tells of none that it can express, larger least sizes are tried, up to the example's. With ``unproven``
    free dimensions other than the batch need not be so by a proof of torch's: whoever asks for that has to try them.
    Raises :class:`NotSplittableError`, and :class:`FactoryError` where inputs are declared in a way that cannot be
    exported.
    """
    _check_free(source)
    dimensions: dict[str, Any] = {BATCH: Dim(BATCH)}
    if unproven:
        dimensions.update(dict.fromkeys(_free_sizes(source), Dim.AUTO))
    by_input: dict[str, Any] = {}
    for spec in source.inputs:
        names = spec.free or (None,) * len(spec.shape)
        free = {index: dimensions.setdefault(name, Dim(name)) for index, name in enumerate(names, 1) if name}
        by_input[spec.name] = {0: dimensions[BATCH], **free}
    shapes: Any = bind_inputs(source, module, by_input)
    with torch.no_grad(), _quiet(), told_by_shape():
        for _ in range(REFINEMENTS):
            try:
                program = torch.export.export(module, (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
                functional = _functional(program)
                if functional.range_constraints.keys() >= program.range_constraints.keys():
                    return functional
                # Sizes got lost that are by chance as large as some other dimension, such as a batch of 2.
                program = torch.export.export(module, (), kwargs=arguments, dynamic_shapes=shapes, strict=False)
                with _SHAPES.patch(backed_size_oblivious=True):
                    return _functional(program)
            except UserError as error:
                told, sizes = str(error), _free_sizes(source)
                refined = None if unproven else _refined(told, shapes) or _raised(told, shapes, sizes)
                if refined is None:
                    raise NotSplittableError(
                        f"torch.export of {source.factory} failed: {describe(error)}",
                        line_of_operation(*watch.demands, error),
                    ) from error
                shapes = refined
            except Exception as error:  # torch.export raises many types, and runs the tenant's code
                raise NotSplittableError(
                    f"torch.export of {source.factory} failed: {describe(error)}",
                    line_of_operation(*(watch.demands if isinstance(error, AssertionError) else ()), error),
                ) from error
    raise NotSplittableError(f"torch.export of {source.factory} finds ever new constraints on its sizes: {shapes}")


def _functional(program: ExportedProgram) -> ExportedProgram:
    """A program without operations in place, regions or ``vmap``: casts of autocast are operations as all others.

    Regions stay where a cast lies within an operation. Raises :class:`NotSplittableError` where they cannot.
    """
    mutates = any(_mutates(node) or _maps(node) for node in program.graph.nodes)
    regions = list(_regions(program.graph_module, casting=False))
    hidden = next(
        (node for _, _, inner, casting in regions if casting for node in inner.graph.nodes if _hides(node)), None
    )
    if hidden is not None and mutates:
        raise NotSplittableError(
            f"within torch.autocast {hidden.target} casts where no graph shows it", line_of_operation(hidden)
        )
    if hidden is not None or not (regions or mutates):
        return program
    for module, name, inner, _ in regions:
        module.set_submodule(name, _Region(inner))
    flat: ExportedProgram = program.run_decompositions({})
    return flat


def _regions(module: fx.GraphModule, *, casting: bool) -> Iterator[tuple[fx.GraphModule, str, fx.GraphModule, bool]]:
    """A module's regions, outer ones first: where each lies, its name, what it runs, and whether autocast is on."""
    for node in module.graph.nodes:
        if node.target in _REGIONS:
            (name,) = (str(each.target) for each in node.args if isinstance(each, fx.Node) and each.op == "get_attr")
            inner = module.get_submodule(name)
            assert isinstance(inner, fx.GraphModule), name
            within = casting
            if node.target is torch.ops.higher_order.wrap_with_autocast and node.args[0] == "cpu":
                within = bool(node.args[2])
            yield module, name, inner, within
            yield from _regions(inner, casting=within)


class _Region(nn.Module):
    """Runs a graph node by node: what traces it notes which node each operation comes from, and from which module."""

    def __init__(self, inner: fx.GraphModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: object) -> object:
        return fx.Interpreter(self.inner).run(*arguments)


def _hides(node: fx.Node) -> bool:
    """Whether an operation under autocast is made of others that are cast, which shows in the type of what it makes.

    Of recurrent layers, which are told by shape, it does not show.
    """
    operation = node.target
    if not isinstance(operation, torch._ops.OpOverload) or operation in RECURRENT:
        return isinstance(operation, torch._ops.OpOverload)
    name = operation.name()  # type: ignore[no-untyped-call]
    made, cast = (
        torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        for key in ("CompositeImplicitAutograd", "AutocastCPU")
    )
    if not made or cast:
        return False
    try:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        uncast = operation(*arguments, **keywords)
    except Exception:  # such as of operands of several types
        return True
    return [leaf.dtype for leaf in _tensors(uncast)] != [leaf.dtype for leaf in _tensors(node.meta.get("val"))]


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _check_free(source: ModelSource) -> None:
    for name, size in _free_sizes(source).items():
        if name == BATCH:
            raise FactoryError(f"a free dimension cannot be called {BATCH}, as the first one is: give it another name")
        if size < 2:
            raise FactoryError(
                f"the example of the free dimension {name} is of {size}, which torch.export takes for fixed: give an "
                "example of 2 at least"
            )


def _free_sizes(source: ModelSource) -> dict[str, int]:
    """The smallest example of each named size."""
    sizes: dict[str, int] = {}
    for spec in source.inputs:
        for name, size in zip(spec.free, spec.shape, strict=False):
            if name is not None:
                sizes[name] = min(size, sizes.get(name, size))
    return sizes


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


def _raised(message: str, shapes: dict[str, Any], examples: Mapping[str, int]) -> dict[str, Any] | None:
    """Shapes in which the sizes that a constraint speaks of are twice as large at least, if the examples are so large.

    Torch tells of constraints that hold from some size on without telling from which: that a feature map which was
    halved five times has more than one element left.
    """
    names = set(_CONSTRAINED.findall(message)) - {BATCH}
    if not names or burnt_in(message):
        return None
    least: dict[str, Any] = {}
    for dimension in (each for dimensions in shapes.values() for each in dimensions.values()):
        name = dimension.__name__
        if name in names:
            size = 2 * max(2, dimension.min)
            if size > examples.get(name, 0):
                return None
            least[name] = Dim(name, min=size, max=dimension.max)
    return (
        {
            key: {index: least.get(each.__name__, each) for index, each in dimensions.items()}
            for key, dimensions in shapes.items()
        }
        if least
        else None
    )


def _maps(node: fx.Node) -> bool:
    """Whether a node begins or ends a ``torch.vmap``, which shows in no value that it makes."""
    return getattr(node.target, "__module__", None) == "torch._functorch.predispatch"


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
