"""Made-up inputs: what a model is timed and tried with where there are no real ones.

Drawn at random, for what is all alike is compressed as nothing real is, and hides rows that were swapped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from splitplane.domain.profiles import TensorSpec
from splitplane.model.datatypes import torch_datatype
from splitplane.model.operations import REARRANGING
from splitplane.model.traced import Traced

if TYPE_CHECKING:
    from splitplane.model.graphs import ModelGraph

Tensors = dict[str, torch.Tensor]
Run = Callable[[Tensors], Any]

_SIGNALS = (torch.uint8, torch.int8, torch.int16, torch.uint16)
"""Integers that stand for pixels or sound where they look up nothing."""
_KEEPING = REARRANGING | {"_to_copy", "add", "sub", "to"}
"""Operations after which ids are ids still, maybe moved by a few."""


def sample(
    specs: Sequence[TensorSpec], *, batch: int = 1, seed: int = 0, ids: Mapping[str, range] | None = None
) -> Tensors:
    """Normal noise, pixels and sound of every value, and ids from the ranges that are given by their inputs' names.

    Other integers and booleans are masks: open up to some place in the last dimension, which is the first at least.
    """
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: _draw(spec, batch, (ids or {}).get(spec.name), generator) for spec in specs}


def _draw(spec: TensorSpec, batch: int, ids: range | None, generator: torch.Generator) -> torch.Tensor:
    dtype, shape = torch_datatype(spec.datatype), (batch, *spec.shape)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if ids is not None:
        drawn = torch.randint(ids.start, ids.stop, shape, generator=generator)
        # With the first and the last among them, a trial of any such inputs tells whether all ids run.
        drawn.view(-1)[-1], drawn.view(-1)[0] = ids[0], ids[-1]
        return drawn.to(dtype)
    if dtype in _SIGNALS:
        limits = torch.iinfo(dtype)
        return torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(dtype)
    if not spec.shape:
        return torch.ones(shape, dtype=dtype)
    open_up_to = torch.randint(1, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    return (torch.arange(shape[-1]) < open_up_to).to(dtype)


def runnable_ids(graph: "ModelGraph", run: Run) -> dict[str, range]:
    """By input: the ids that a model takes, from the tables that it looks them up in, and by trial.

    ``run`` is the model on a batch of one; what it raises on the last trial is raised here.
    """
    rows = {} if graph.program is None else table_rows(graph.program.traced)
    most, first = max(rows.values(), default=1), 0
    while True:
        starts = {name: min(first, count - 1) for name, count in rows.items()}
        ids = {name: range(start, max(start + 1, min(rows[name], most))) for name, start in starts.items()}
        try:
            run(sample(graph.inputs, ids=ids))
        except (IndexError, RuntimeError):
            if most > first + 1:  # what is looked up is not the id itself, but something larger
                most = max(first + 1, most // 2)
            elif rows and not first:  # or something smaller
                most, first = max(rows.values()), 1
            else:
                raise
        else:
            return ids


def table_rows(traced: Traced) -> dict[str, int]:
    """By input: the rows of the smallest table that its values are looked up in; others are left out."""
    tables = {name: list(_tables(node)) for name, node in traced.inputs.items()}
    return {name: min(rows) for name, rows in tables.items() if rows}


def _tables(ids: fx.Node) -> Iterator[int]:
    seen, stack = {ids}, [ids]
    while stack:
        value = stack.pop()
        for user in value.users:
            made = user.meta.get("val")
            if not isinstance(user.target, torch._ops.OpOverload) or not isinstance(made, torch.Tensor):
                continue
            yield from (rows for rows in _looked_up(user, value) if isinstance(rows, int))
            kept = user.target.overloadpacket.__name__ in _KEEPING and not made.is_floating_point()
            if kept and made.dtype != torch.bool and user not in seen:
                seen.add(user)
                stack.append(user)


def _looked_up(node: fx.Node, ids: fx.Node) -> Iterator[object]:
    """Of how many rows the ids pick, if that is what the node does."""
    assert isinstance(node.target, torch._ops.OpOverload)
    match node.target.overloadpacket.__name__, node.args:
        case "embedding", (fx.Node() as table, value, *_) if value is ids:
            yield table.meta["val"].shape[0]
        case "gather" | "index_select", (fx.Node() as table, int(dimension), value, *_) if value is ids:
            yield table.meta["val"].shape[dimension]
        case "index", (fx.Node() as table, indices, *_):
            assert isinstance(indices, Sequence)
            yield from (table.meta["val"].shape[at] for at, value in enumerate(indices) if value is ids)
        case "one_hot", (value, int(count), *_) if value is ids and count > 0:
            yield count


def drawn_batches(graph: "ModelGraph", run: Run, batches: Sequence[int]) -> dict[int, Tensors]:
    """Inputs of each batch size: the first at the example's free sizes, the others at half of them and at the least."""
    ids = runnable_ids(graph, run)
    return {
        batch: sample(_resized(graph, index), batch=batch, seed=index, ids=ids) for index, batch in enumerate(batches)
    }


def _resized(graph: "ModelGraph", step: int) -> Sequence[TensorSpec]:
    if graph.program is None or not step:
        return graph.inputs
    sizes = graph.program.sizes
    values = {
        symbol: 1 if symbol == sizes.batch else max(each.lowest, each.example // 2 if step % 2 else 0)
        for symbol, each in sizes.by_symbol.items()
    }
    shapes = {
        value.name: tuple(int(size.subs(values)) for size in value.crossing.sample)
        for value in graph.program.crossing(0)
    }
    return [replace(spec, shape=shapes[spec.name]) for spec in graph.inputs]
