"""Models: load a factory, export its graph, find its cuts, run any range of its segments, measure it."""

from splitplane.model import libraries
from splitplane.model.errors import CalibrationError, FactoryError, ModelError, NotSplittableError, WeightsError
from splitplane.model.graphs import ModelGraph, export
from splitplane.model.partitions import Partition, load_partition, load_weights
from splitplane.model.source import ModelSource

__all__ = [
    "CalibrationError",
    "FactoryError",
    "ModelError",
    "ModelGraph",
    "ModelSource",
    "NotSplittableError",
    "Partition",
    "WeightsError",
    "export",
    "libraries",
    "load_partition",
    "load_weights",
]
