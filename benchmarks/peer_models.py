"""The work that every server of ``benchmarks.peers`` does: MiniLM, or nothing, in one piece or in two halves.

Imported in the peers' environment too, so that all of them run the very same compiled ranges.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.profiles import CODECS, Cut, TensorSpec
from splitplane.model import ModelSource, load_partition

MODELS = Path(__file__).parents[1] / "examples" / "models"
TOKENS = 128
HALF = {"minilm": 7, "identity": 1}
"""The cut in the middle: after three of six layers."""
LAST = {"minilm": 13, "identity": 2}
ACTIVATION = TensorSpec("activation", "FP32", (TOKENS, 384))
"""What crosses MiniLM's middle, but for a mask of 128 bytes."""


class Range(Protocol):
    """What ``load`` gives; ``graph.cuts`` describe what goes in and comes out."""

    @property
    def graph(self) -> Any: ...

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class _Graph:
    cuts: tuple[Cut, ...]


_WIRE_BYTES = {codec: encoded_bytes(ACTIVATION, codec) for codec in CODECS}


class Identity:
    """Two segments that return their input."""

    graph = _Graph(tuple(Cut(index, "identity", (ACTIVATION,), _WIRE_BYTES, "identity") for index in range(3)))

    def run(self, _first: int, _last: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return tensors


def source(weights: Path, digest: str) -> ModelSource:
    inputs = [{"name": n, "datatype": "INT64", "shape": [-1, TOKENS]} for n in ("input_ids", "attention_mask")]
    given = {"name": "encoder", "factory": "sentence_encoder:build", "inputs": inputs,
             "weights": {"uri": weights.as_uri(), "sha256": digest}}  # fmt: skip
    return ModelSource.from_json(json.dumps(given))


def load(model: str, first: int, last: int, weights: Path, digest: str) -> Range:
    """One thread computes."""
    torch.set_num_threads(1)
    return Identity() if model == "identity" else load_partition(source(weights, digest), first, last)


def example(model: str) -> dict[str, np.ndarray[Any, Any]]:
    """One sample."""
    generator = np.random.default_rng(0)
    if model == "identity":
        return {ACTIVATION.name: generator.standard_normal((1, *ACTIVATION.shape), np.float32)}
    ids = generator.integers(1000, 20000, (1, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones((1, TOKENS), np.int64)}
