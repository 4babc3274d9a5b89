"""Sizes that differ from request to request (the batch, tokens, height), and the arithmetic on them.

``torch.export`` gives every size as an expression over symbols. A range of segments computes any of them from the
values of the symbols, which it reads off the tensors that it receives: chains of ``sym_size`` across cuts are not
followed. Symbols that the data itself defines (how many elements are above 0) are none of these sizes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Size:
    """A free dimension: its name, the size that bytes are counted by, and the sizes that the model can take."""

    name: str
    example: int
    lowest: int
    highest: int | None


@dataclass(frozen=True)
class Sizes:
    """The free sizes of a graph by their symbols; one of them is the batch."""

    by_symbol: Mapping[sympy.Symbol, Size]
    batch: sympy.Symbol

    def knows(self, size: object) -> bool:
        """Whether a size follows from the free ones alone."""
        return isinstance(size, int) or (
            isinstance(size, torch.SymInt) and expression(size).free_symbols <= self.by_symbol.keys()
        )

    def is_batch(self, size: object) -> bool:
        return isinstance(size, torch.SymInt) and expression(size) == self.batch

    def example(self, size: sympy.Expr) -> int:
        """The value of a known size for one sample of the example."""
        values = {symbol: 1 if symbol == self.batch else each.example for symbol, each in self.by_symbol.items()}
        return int(size.subs(values))

    def name(self, size: sympy.Expr) -> str | None:
        """A size in terms of the users' names; ``None`` where it is fixed."""
        if not size.free_symbols:
            return None
        named = {symbol: sympy.Symbol(each.name, integer=True) for symbol, each in self.by_symbol.items()}
        return str(size.subs(named)).replace(" ", "")


def expression(size: Any) -> sympy.Expr:
    """A size of a traced tensor as sympy has it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def solve(size: sympy.Expr) -> tuple[sympy.Symbol, int, int] | None:
    """``(s, a, b)`` if the size is ``a * s + b``, so that it tells the symbol; ``None`` for all others."""
    if len(size.free_symbols) != 1:
        return None
    (symbol,) = size.free_symbols
    factor, rest = size.coeff(symbol, 1), size.coeff(symbol, 0)
    if factor.is_Integer and rest.is_Integer and factor > 0 and sympy.expand(factor * symbol + rest - size) == 0:
        return symbol, int(factor), int(rest)
    return None


def emit(code: fx.Graph, size: sympy.Expr, symbols: Mapping[sympy.Symbol, fx.Node]) -> fx.Node | int:
    """Add the computation of a size to a graph."""
    tracer = fx.proxy.GraphAppendingTracer(code)
    proxies = {symbol: fx.Proxy(node, tracer) for symbol, node in symbols.items()}
    result = sympy_interp(PythonReferenceAnalysis, proxies, size)
    return result.node if isinstance(result, fx.Proxy) else int(result)


def free_symbols(sizes: Iterable[object]) -> set[sympy.Symbol]:
    return {symbol for size in sizes if isinstance(size, torch.SymInt) for symbol in expression(size).free_symbols}
