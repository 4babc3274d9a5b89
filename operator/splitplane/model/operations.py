"""Which operations of a graph are worth a cut beside them, and which do no work at all."""

import torch
from torch import fx

from splitplane.model.traced import Kind, Traced

HEAVY = frozenset(
    {
        "addbmm", "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "convolution", "einsum", "gru", "linear", "lstm", "matmul", "mm", "rnn_relu", "rnn_tanh",
        "scaled_dot_product_attention",
    }
)  # fmt: skip
"""Operations that are heavy even where no weight table goes in."""


REARRANGING = frozenset(
    {
        "alias", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "movedim", "permute", "reshape",
        "slice", "squeeze", "transpose", "unflatten", "unsqueeze", "view",
    }
)  # fmt: skip
"""Operations that do no work: a cut after one is no better than a cut before it."""


def is_heavy(traced: Traced, node: fx.Node) -> bool:
    """Whether repeating this node downstream would be wrong (it is random) or would cost more than light work."""
    if traced.kinds.get(node) is not Kind.DATA or node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target.overloadpacket.__name__ in HEAVY or torch.Tag.nondeterministic_seeded in node.target.tags:
        return True
    return any(source in traced.parameters and source.meta["val"].ndim > 1 for source in node.all_input_nodes)


def is_rearrangement(node: fx.Node) -> bool:
    """Whether a node does no work."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket.__name__ in REARRANGING
