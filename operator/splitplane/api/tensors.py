"""Tensors as the Open Inference Protocol names them: shared by pipelines, profiles and route tables."""

from typing import Annotated, Literal

from splitplane.api.fields import Model, at_most, between, keyed, ordered, rule, rules

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"
]
Dimension = Annotated[int, between(-1, 2**31 - 1)]


class Tensor(Model):
    """A tensor that enters or leaves the model; its first dimension is the batch."""

    model_config = rules(
        rule("self.shape[0] == -1", "the first dimension is the batch and must be -1", field=".shape"),
        rule(
            "self.shape.filter(n, n < 1).size() <= (self.shape[0] == -1 ? 1 : 0)",
            "every dimension after the first must be at least 1",
            field=".shape",
        ),
    )

    name: Annotated[str, at_most(128)]
    datatype: Datatype
    shape: Annotated[tuple[Dimension, ...], ordered(least=1, most=8)]


Tensors = Annotated[tuple[Tensor, ...], keyed("name", least=1, most=32)]
