"""Tensors as the Open Inference Protocol names them: shared by pipelines, profiles and route tables."""

from typing import Annotated, Literal

from splitplane.api.fields import Model, at_most, between, keyed, ordered, rule, rules, text

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"
]
Dimension = Annotated[int, between(-1, 2**31 - 1)]


_BATCH_FIRST = rule("self.shape[0] == -1", "the first dimension is the batch and must be -1", field=".shape")


class Tensor(Model):
    """A tensor that enters or leaves the model; its first dimension is the batch, and -1 is any size."""

    model_config = rules(
        _BATCH_FIRST, rule("self.shape.all(n, n != 0)", "every dimension must be -1 or at least 1", field=".shape")
    )

    name: Annotated[str, at_most(128)]
    datatype: Datatype
    shape: Annotated[tuple[Dimension, ...], ordered(least=1, most=8)]


_SIZE_NAME = text("^[A-Za-z_][A-Za-z0-9_]*$", "must be letters, digits and underscores, such as tokens", longest=63)


class FreeDimension(Model):
    """A dimension whose size may differ from request to request, such as the length of a text."""

    model_config = rules(rule("self.name != 'batch'", "batch is the name of the first dimension", field=".name"))

    dimension: Annotated[int, between(1, 7)]
    """Its place in the shape; the batch, which is always free, is 0."""
    name: Annotated[str, *_SIZE_NAME]
    """Dimensions of one name have one size."""


class ModelInput(Model):
    """A tensor that the model takes; its first dimension is the batch."""

    model_config = rules(
        _BATCH_FIRST,
        rule(
            "self.shape.filter(n, n < 1).size() <= (self.shape[0] == -1 ? 1 : 0)",
            "every dimension after the first must be at least 1",
            field=".shape",
        ),
        rule(
            "!has(self.freeDimensions) || self.freeDimensions.all(f, f.dimension < self.shape.size())",
            "every free dimension must be one of shape",
            field=".freeDimensions",
        ),
    )

    name: Annotated[str, at_most(128)]
    datatype: Datatype
    shape: Annotated[tuple[Dimension, ...], ordered(least=1, most=8)]
    free_dimensions: Annotated[tuple[FreeDimension, ...], keyed("dimension", most=7)] | None = None
    """Dimensions that are free beside the batch; for these the shape has the size of an example, by which times and
    bytes are measured."""


Tensors = Annotated[tuple[Tensor, ...], keyed("name", least=1, most=32)]
ModelInputs = Annotated[tuple[ModelInput, ...], keyed("name", least=1, most=32)]
