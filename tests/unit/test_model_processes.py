"""Ranges of trained models, each in a process of its own that reads its weights from disk, give the whole's answers."""

import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelGraph, ModelSource, export, load_partition

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
# Workers are forked from a server that has the libraries imported, and nothing of a model in memory.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["splitplane.model", "torch.export._trace", "torch._dynamo"])


def run_range(source: ModelSource, first: int, last: int, fingerprint: str, given: Path, result: Path) -> None:
    """A worker's whole life: load ``[first, last)``, run it on every batch in ``given``, write ``result``."""
    sys.path.insert(0, str(EXAMPLES))
    partition = load_partition(source, first, last)
    assert partition.graph.fingerprint == fingerprint
    tensors, results = load_file(given), {}
    for batch in BATCHES:
        inputs = {spec.name: tensors[f"{batch}/{spec.name}"] for spec in partition.graph.cuts[first].tensors}
        for name, value in partition.run(first, last, inputs).items():
            results[f"{batch}/{name}"] = value
    save_file(results, result)


def in_process(source: ModelSource, first: int, last: int, graph: ModelGraph, given: Path, result: Path) -> None:
    process = CONTEXT.Process(target=run_range, args=(source, first, last, graph.fingerprint, given, result))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, f"range {first}:{last} ended with {process.exitcode}"


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

    def error_at(cut: int) -> float:
        bounds = sorted({0, cut, cuts - 1})
        for first, last in pairwise(bounds):
            given = tmp_path / ("0" if first == 0 else f"{cut}-middle")
            result = tmp_path / (f"{cut}-end" if last == cuts - 1 else f"{cut}-middle")
            in_process(source, first, last, graph, given, result)
        outputs = load_file(tmp_path / f"{cut}-end")
        return max(float((outputs[f"{batch}/output_0"] - expected[batch]).abs().max()) for batch in BATCHES)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        errors = list(pool.map(error_at, range(1, cuts)))
    assert max(errors) <= TOLERANCE, errors


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
