"""Recurrent layers in an export: their outputs told by shape, not step by step.

To learn the shape of what an LSTM gives, torch runs its steps one by one over the example, which burns the number of
steps in. What lands in the graph is one operation that takes any number.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table

_KEY = torch._C.DispatchKey.CompositeImplicitAutograd
RECURRENT: tuple[Any, ...] = tuple(
    getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
)


@contextlib.contextmanager
def told_by_shape() -> Iterator[None]:
    """Put a function of shapes in place of torch's loops, in both places where tensors without memory look for them."""
    kept = [(each, each.py_kernels[_KEY], decomposition_table[each]) for each in RECURRENT]
    try:
        for operation in RECURRENT:
            _put(operation, _outputs, _outputs)
        yield
    finally:
        for operation, kernel, decomposition in kept:
            _put(operation, kernel, decomposition)


def _put(operation: Any, kernel: Any, decomposition: Any) -> None:
    operation.py_kernels[_KEY] = kernel
    operation._dispatch_cache.clear()
    decomposition_table[operation] = decomposition


def _outputs(
    steps: torch.Tensor,
    states: torch.Tensor | Sequence[torch.Tensor],
    _weights: Sequence[torch.Tensor],
    _biases: bool,
    _layers: int,
    _dropout: float,
    _train: bool,
    both_ways: bool,
    _batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """What each step gives, of the width of a hidden state in each direction, and the last states."""
    given = [states] if isinstance(states, torch.Tensor) else list(states)
    width = given[0].shape[2] * (2 if both_ways else 1)
    return steps.new_empty((*steps.shape[:2], width)), *(torch.empty_like(state) for state in given)
