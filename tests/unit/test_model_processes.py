"""Ranges of trained models, each in a process of its own that reads its weights from disk, give the whole's answers."""

import importlib
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from forking import FORKED
from safetensors.torch import load_file, save_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelGraph, ModelSource, export, load_partition, load_weights

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
BATCHES = (1, 3, 8)
TOLERANCE = 1e-5
MODELS = {
    "crepe": ("pitch_tracker", (TensorSpec("frames", "FP32", (1024,)),), 8),
    "minilm": (
        "sentence_encoder",
        (TensorSpec("input_ids", "INT64", (128,)), TensorSpec("attention_mask", "INT64", (128,))),
        14,
    ),
}
RANGES = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Range:
    """Segments ``[first, last)``, the file with what crosses into them, and the file for what leaves them."""

    first: int
    last: int
    given: Path
    result: Path


def run_range(graph: ModelGraph, part: Range) -> None:
    """A process's whole life: load the range's weights, run it on every batch that is given, write the results."""
    partition = load_weights(graph, part.first, part.last)
    tensors, results = load_file(part.given), {}
    for batch in BATCHES:
        inputs = {spec.name: tensors[f"{batch}/{spec.name}"] for spec in graph.cuts[part.first].tensors}
        for name, value in partition.run(part.first, part.last, inputs).items():
            results[f"{batch}/{name}"] = value
    save_file(results, part.result)


def run_ranges(source: ModelSource, fingerprint: str, parts: Sequence[Range]) -> None:
    """Export the model, then give every range a process of its own, one after another."""
    sys.path.insert(0, str(EXAMPLES))
    torch.set_num_threads(1)
    graph = export(source)
    assert graph.fingerprint == fingerprint
    for part in parts:
        finish(RANGES.Process(target=run_range, args=(graph, part), name=f"{part.first}:{part.last}"))


def finish(*processes: BaseProcess) -> None:
    """Run processes side by side to a good end."""
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes), processes


def real_inputs(name: str) -> dict[str, torch.Tensor]:
    """Voice frames; tokens of the encoder's vocabulary in sentences of mixed lengths."""
    tensors = {}
    for batch in BATCHES:
        if name == "crepe":
            tensors[f"{batch}/frames"] = torch.from_numpy(importlib.import_module("audio").frames(batch, seed=batch))
        else:
            generator = torch.Generator().manual_seed(batch)
            lengths = torch.randint(4, 129, (batch, 1), generator=generator)
            mask = torch.arange(128)[None] < lengths
            tensors[f"{batch}/input_ids"] = torch.randint(1000, 30000, (batch, 128), generator=generator) * mask
            tensors[f"{batch}/attention_mask"] = mask.long()
    return tensors


@pytest.mark.parametrize("name", sorted(MODELS))
def test_two_processes_give_what_the_eager_whole_gives_at_every_cut(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    module_name, specs, cuts = MODELS[name]
    module = importlib.import_module(module_name)
    weights = tmp_path / "weights.safetensors"
    digest = module.save(weights, "full") if name == "crepe" else module.save(weights)
    source = ModelSource(name, f"{module_name}:build", weights.as_uri(), digest, specs)
    graph = export(source)
    assert len(graph.cuts) == cuts
    inputs = real_inputs(name)
    save_file(inputs, tmp_path / "0")
    whole = module.build()
    whole.load_state_dict(load_file(weights), strict=False)
    with torch.inference_mode():
        expected = {batch: whole(*(inputs[f"{batch}/{spec.name}"] for spec in specs)) for batch in BATCHES}

    end, interior = cuts - 1, range(1, cuts - 1)
    fronts = [Range(0, cut, tmp_path / "0", tmp_path / f"{cut}") for cut in range(1, cuts)]
    backs = [Range(cut, end, tmp_path / f"{cut}", tmp_path / f"{cut}-{end}") for cut in interior]
    for parts in (fronts, backs):
        halves = [FORKED.Process(target=run_ranges, args=(source, graph.fingerprint, parts[i::2])) for i in (0, 1)]
        finish(*halves)
    for path in (tmp_path / f"{end}", *(part.result for part in backs)):
        outputs = load_file(path)
        for batch in BATCHES:
            assert (outputs[f"{batch}/output_0"] - expected[batch]).abs().max() <= TOLERANCE, (path.name, batch)


def test_a_process_reads_only_the_tensors_of_its_range(tmp_path: Path) -> None:
    sys.path.insert(0, str(EXAMPLES))
    weights = tmp_path / "tiny.safetensors"
    importlib.import_module("pitch_tracker").save(weights, "tiny")
    state = load_file(weights)
    rest = tmp_path / "rest.safetensors"
    save_file({key: value for key, value in state.items() if key.startswith(("conv5", "conv6", "classifier"))}, rest)
    source = ModelSource("tiny", "pitch_tracker:build_tiny", rest.as_uri(), None, MODELS["crepe"][1])
    partition = load_partition(source, 4, None)
    complete = load_partition(replace(source, weights_uri=weights.as_uri()), 0, None)
    tensors = complete.run(0, 4, {"frames": torch.randn(2, 1024)})
    torch.testing.assert_close(partition.run(4, 7, tensors), complete.run(4, 7, tensors))
