"""Where models are cut, and that a cut changes nothing (CREPE at its smallest capacity; its trained weights)."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource, export, load_partition

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="module")
def pitch_tracker() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module("pitch_tracker")


@pytest.fixture(scope="module")
def source(pitch_tracker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    digest = pitch_tracker.save(path, "tiny")
    return ModelSource(
        "pitch-tracker", "pitch_tracker:build_tiny", path.as_uri(), digest, (TensorSpec("frames", "FP32", (1024,)),)
    )


def test_a_convolutional_model_is_cut_after_every_block(source: ModelSource) -> None:
    graph = export(source)
    assert graph.segments == ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "classifier")
    assert [cut.name for cut in graph.cuts] == ["input", *graph.segments[:-1], "output"]
    assert [cut.wire_bytes["fp32"] for cut in graph.cuts] == [4096, 65536, 4096, 2048, 1024, 1024, 1024, 1440]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_two_halves_give_what_the_whole_gives_at_every_cut(
    source: ModelSource, pitch_tracker: ModuleType, batch: int
) -> None:
    whole = pitch_tracker.build_tiny()
    whole.load_state_dict(load_file(source.weights_uri.removeprefix("file://")))
    partition = load_partition(source, 0, None)
    frames = torch.randn(batch, 1024, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        expected = whole(frames)
    tensors: Mapping[str, torch.Tensor]
    for cut in range(len(partition.graph.cuts)):
        tensors = {"frames": frames}
        if cut > 0:
            tensors = partition.run(0, cut, tensors)
        if cut < partition.last:
            tensors = partition.run(cut, partition.last, tensors)
        assert (tensors["output_0"] - expected).abs().max() <= 1e-5
