"""Whether tensors are those that a cut takes: names, types, shapes, and free sizes that agree."""

from collections.abc import Mapping

import sympy  # type: ignore[import-untyped]
import torch

from splitplane.domain.profiles import TensorSpec
from splitplane.model.datatypes import torch_datatype
from splitplane.model.graphs import ModelGraph
from splitplane.model.sizes import Sizes, solve


class InputCheck:
    """Puts the tensors of a cut into the order of its schema, once they have been checked."""

    def __init__(self, graph: ModelGraph, cut: int) -> None:
        self._cut = cut
        self._specs = [(spec, torch_datatype(spec.datatype)) for spec in graph.cuts[cut].tensors]
        self._names = {spec.name for spec, _ in self._specs}
        self._sizes = None if graph.program is None else graph.program.sizes
        self._free: list[tuple[str, int, sympy.Expr]] = []
        """Name of the tensor, dimension, and what it must be, the batch included."""
        if graph.program is not None:
            for value in graph.program.crossing(cut):
                shape = (graph.program.sizes.batch, *value.crossing.sample)
                self._free += [(value.name, index, size) for index, size in enumerate(shape) if size.free_symbols]

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Raises ``ValueError`` that names the tensor and what was expected."""
        if tensors.keys() != self._names:
            wanted = ", ".join(spec.name for spec, _ in self._specs)
            raise ValueError(f"cut {self._cut} takes the tensors {wanted}, not {', '.join(tensors) or 'none'}")
        for spec, dtype in self._specs:
            tensor, declared = tensors[spec.name], spec.declared_shape
            fits = len(declared) == tensor.ndim and all(
                want in (-1, got) for want, got in zip(declared, tensor.shape, strict=True)
            )
            if tensor.dtype != dtype or not fits:
                raise ValueError(
                    f"tensor {spec.name} of cut {self._cut} must be {spec.datatype} of shape {_told(spec)}, "
                    f"not {tensor.dtype} of {list(tensor.shape)}"
                )
        if self._sizes is not None:
            self._check_sizes(self._sizes, tensors)
        return [tensors[spec.name] for spec, _ in self._specs]

    def _check_sizes(self, sizes: Sizes, tensors: Mapping[str, torch.Tensor]) -> None:
        values: dict[sympy.Symbol, int] = {}
        derived: list[tuple[str, int, sympy.Expr]] = []
        for name, index, size in self._free:
            got = tensors[name].shape[index]
            solved = (size, 1, 0) if size.is_Symbol else solve(size)
            if solved is None:
                derived.append((name, index, size))
                continue
            symbol, factor, rest = solved
            value, remainder = divmod(got - rest, factor)
            limits = sizes.by_symbol[symbol]
            wrong = remainder or values.setdefault(symbol, value) != value
            if wrong or not limits.lowest <= value <= (limits.highest or value):
                raise ValueError(self._wrong(sizes, name, index, size, got))
        for name, index, size in derived:
            if size.free_symbols <= values.keys() and int(size.subs(values)) != tensors[name].shape[index]:
                raise ValueError(self._wrong(sizes, name, index, size, tensors[name].shape[index]))

    def _wrong(self, sizes: Sizes, name: str, index: int, size: sympy.Expr, got: int) -> str:
        told = sizes.name(size)
        limits = [
            f"{each.name} from {each.lowest} to {each.highest or 'any size'}"
            for symbol, each in sizes.by_symbol.items()
            if symbol in size.free_symbols and (symbol != sizes.batch or each.highest is not None)
        ]
        return (
            f"dimension {index} of tensor {name} of cut {self._cut} is {got}; it must be {told}, the same in all "
            f"tensors{', ' if limits else ''}{', '.join(limits)}"
        )


def _told(spec: TensorSpec) -> str:
    names = spec.free or (None,) * len(spec.shape)
    sizes = (str(size) if name is None else name for size, name in zip(spec.shape, names, strict=True))
    return f"[-1, {', '.join(sizes)}]" if spec.shape else "[-1]"
