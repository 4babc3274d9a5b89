"""Random weights of any size in next to no memory, for a run that asks only whether two ways compute the same.

A matrix repeats along its diagonals (a Hankel matrix: entry ``i, j`` is the same as entry ``i + 1, j - 1``), which
strides of one say without a copy. Products with it are correlations, computed by Fourier transforms.
"""

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def stand_in(weight: torch.Tensor) -> torch.Tensor:
    """Random values in the form of a weight, about as large as a fresh layer's."""
    count = sum(weight.shape) - weight.ndim + 1
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(weight.dtype)
    scale = math.sqrt(max(1, math.prod(weight.shape[1:])))
    return (values / scale).as_strided(weight.shape, (1,) * weight.ndim)


class QuickProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Multiplies with matrices of :func:`stand_in` where torch would first lay them out in full.

    Not within branches and loops of ``torch.cond`` and its like.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        match operation, args, kwargs or {}:
            case torch.ops.aten.mm.default, (rows, matrix), {} if _repeats(matrix):
                return _product(rows, matrix)
            case torch.ops.aten.addmm.default, (bias, rows, matrix), {} if _repeats(matrix) and not kwargs:
                return bias + _product(rows, matrix)
            case torch.ops.aten._grouped_mm.default, (rows, matrices, ends), {} if (
                _each_repeats(matrices) and not kwargs
            ):
                return _products(rows, matrices, ends)
            case _:
                return operation(*args, **(kwargs or {}))


def _repeats(matrix: torch.Tensor) -> bool:
    return matrix.stride() == (1, 1) and min(matrix.shape) > 1


def _each_repeats(matrices: torch.Tensor) -> bool:
    return matrices.stride() == (1, 1, 1) and min(matrices.shape) > 1


def _products(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of each group times its matrix, as experts compute: torch refuses matrices that are not laid out in full."""
    result = rows.new_zeros(len(rows), matrices.shape[2])
    first = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        result[first:end] = _product(rows[first:end], matrix)
        first = end
    return result


def _product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``rows @ matrix``: ``[r, n] @ [n, m]``, entry ``i, j`` being value ``i + j`` of ``n + m - 1``."""
    count, columns = matrix.shape
    values = matrix.as_strided((count + columns - 1,), (1,)).float()
    # Below dispatch nothing would heed the mark that a lazy conjugate leaves.
    spectrum = torch.fft.rfft(values) * torch.fft.rfft(rows.float(), n=len(values)).conj_physical()
    product: torch.Tensor = torch.fft.irfft(spectrum, n=len(values))[:, :columns]
    return product.to(rows.dtype)
