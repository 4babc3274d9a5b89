"""Where a model's input can still be read from what crosses, though some of the model has run: beside it, untouched.

``model.origins`` names such tensors: after the input (``image``), or, once it was rearranged or changed number by
number, after it with a dot and more (``image.div``).
"""

from collections.abc import Sequence

from splitplane.domain.profiles import Cut, TensorSpec

_FLOATING = ("FP16", "BF16", "FP32", "FP64")


def padding_masks(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Inputs that only tell how long another one is: whole numbers in a row named a mask, beside others of their
    shape."""
    whole = [each for each in inputs if each.datatype not in _FLOATING]
    return frozenset(
        each.name
        for each in whole
        if each.name.endswith("mask")
        and len(each.shape) == 1
        and any(other.name != each.name and other.shape == each.shape and other.free == each.free for other in whole)
    )


def past_inputs(cuts: Sequence[Cut]) -> int:
    """The first cut that no input but masks of padding crosses, nor any cut after it; the last one, if there is none.

    What leaves by the last cut is the answer, and whoever asked for it gets it.
    """
    masks = padding_masks(cuts[0].tensors)
    names = [each.name for each in cuts[0].tensors if each.name not in masks]

    def shows(cut: Cut) -> bool:
        return any(each.name == name or each.name.startswith(f"{name}.") for each in cut.tensors for name in names)

    return 1 + max((cut.index for cut in cuts[1:-1] if shows(cut)), default=0)
