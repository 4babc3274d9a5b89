"""Free sizes of which torch cannot prove that a graph holds for them: tried at every kind of size there is.

Padding to a multiple of 8 is for any number of tokens, but torch finds of the example that the padded sequence divides
into windows, and can neither prove it of all sizes nor say of which it holds. Each such finding is true or false of
another size. Sizes of which the same findings hold are of one kind: module and graph are run side by side at some of
each kind, on made-up weights (``stand_ins``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from splitplane.model.outside import outside_kept
from splitplane.model.recurrent import told_by_shape
from splitplane.model.samples import sample
from splitplane.model.sizes import BATCH, Size
from splitplane.model.smallest import agree, reshaped_at
from splitplane.model.source import ModelSource, bind_inputs
from splitplane.model.traced import Traced

KINDS = 12
"""Of sizes: with more of them none is believed."""
BEYOND = tuple(power + rest for power in (1 << exponent for exponent in range(6, 15)) for rest in (-1, 0, 1, 5))
"""Sizes that are too large to be tried: they must be of a kind that was, and all below the first that is not."""


def takes_other_sizes(source: ModelSource, module: nn.Module) -> bool:
    """Whether the module itself runs where each free size is one more than the example's."""
    inputs = [
        replace(spec, shape=tuple(n + bool(name) for n, name in zip(spec.shape, spec.free, strict=False)) or spec.shape)
        for spec in source.inputs
    ]
    mode = next((each.fake_mode for each in module.parameters() if isinstance(each, FakeTensor)), None)
    try:
        with (
            torch.no_grad(),
            mode or FakeTensorMode(allow_non_fake_inputs=True),
            told_by_shape(),
            outside_kept(source, module),
        ):
            module(**bind_inputs(source, module, sample(inputs, batch=2)))
    except Exception:  # the tenant's code may raise anything
        return False
    return True


def tried(source: ModelSource, module: nn.Module, traced: Traced, findings: Iterable[sympy.Basic]) -> Traced | None:
    """The graph with the least and the greatest of each free size at which it was found right; ``None`` if there is a
    kind of sizes between at which it isn't."""
    told = [each for each in dict.fromkeys(findings) if each not in (sympy.true, sympy.false)]
    found: dict[sympy.Symbol, Size] = {}
    for symbol, size in traced.sizes.by_symbol.items():
        if size.name == BATCH:
            found[symbol] = size
            continue
        limited = _limits(source, module, traced, [each for each in told if symbol in each.free_symbols], symbol)
        if limited is None:
            return None
        found[symbol] = limited
    if len(found) > 2 and not all(_holds(source, module, traced, values) for values in _together(traced, found)):
        return None
    return replace(traced, sizes=replace(traced.sizes, by_symbol=found))


def _together(traced: Traced, found: Mapping[sympy.Symbol, Size]) -> list[dict[sympy.Symbol, int]]:
    """All sizes at their least, one more, and at odd ones about the example's: each was tried beside examples."""
    batch = {traced.sizes.batch: 3}
    free = [(symbol, size) for symbol, size in found.items() if symbol != traced.sizes.batch]
    return [
        {symbol: max(2, size.lowest) for symbol, size in free} | batch,
        {symbol: max(2, size.lowest) + index for index, (symbol, size) in enumerate(free, 1)} | batch,
        {symbol: size.example + index for index, (symbol, size) in enumerate(free, 1)} | batch,
    ]


def _holds(source: ModelSource, module: nn.Module, traced: Traced, values: Mapping[sympy.Symbol, int]) -> bool:
    return reshaped_at(traced, values) == {} and agree(source, module, traced, values) is True


def _limits(
    source: ModelSource, module: nn.Module, traced: Traced, told: list[sympy.Basic], symbol: sympy.Symbol
) -> Size | None:
    size = traced.sizes.by_symbol[symbol]
    example = {each: one.example for each, one in traced.sizes.by_symbol.items()}

    def kind(number: int) -> tuple[bool, ...]:
        numbers = {**example, traced.sizes.batch: 3, symbol: number}
        values = {each: sympy.Integer(value) for each, value in numbers.items()}
        return tuple(each.xreplace(values) == sympy.true for each in told)

    def holds(number: int) -> bool:
        return _holds(source, module, traced, {**example, traced.sizes.batch: 3, symbol: number})

    highest = 2 * size.example + 1 if size.highest is None else min(size.highest, 2 * size.example + 1)
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for number in range(max(2, size.lowest), highest + 1):
        kinds.setdefault(kind(number), []).append(number)
    if len(kinds) > KINDS:
        return None
    wrong = {name for name, numbers in kinds.items() if not all(map(holds, {numbers[0], numbers[-1]}))}
    lowest = max((kinds[name][-1] + 1 for name in wrong), default=size.lowest)
    if lowest > size.example:
        return None
    right = kinds.keys() - wrong
    limit = min((number for number in BEYOND if number > highest and kind(number) not in right), default=None)
    if limit is not None:
        known = max((number for number in BEYOND if highest < number < limit), default=highest)
        limit = next(number for number in range(known + 1, limit + 1) if kind(number) not in right)
    bounds = [each for each in (size.highest, None if limit is None else limit - 1) if each is not None]
    return replace(size, lowest=lowest, highest=min(bounds, default=None))
