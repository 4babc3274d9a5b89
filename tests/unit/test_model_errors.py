"""What is wrong with a user's model is told so that the user can cure it."""

import importlib
import json
import operator
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import splitplane
from splitplane.domain.profiles import TensorSpec
from splitplane.model import FactoryError, ModelSource, WeightsError, export, load_partition
from splitplane.model.profile import measure
from splitplane.model.refusals import line_of_operation
from splitplane.model.whole import load_whole, save_own_weights

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
FRAMES = (TensorSpec("frames", "FP32", (1024,)),)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    sys.path.insert(0, str(EXAMPLES))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    digest = importlib.import_module("pitch_tracker").save(path, "tiny")
    return ModelSource("tracker", "pitch_tracker:build_tiny", path.as_uri(), digest, FRAMES)


def environment(source: ModelSource) -> str:
    return json.dumps(
        {
            "name": source.name,
            "factory": source.factory,
            "weights": {"uri": source.weights_uri, "sha256": source.weights_sha256},
            "inputs": [{"name": s.name, "datatype": s.datatype, "shape": [-1, *s.shape]} for s in source.inputs],
        }
    )


def test_the_environment_variable_is_read_back(source: ModelSource) -> None:
    assert ModelSource.from_json(environment(source)) == source


def test_free_dimensions_are_read_from_the_variable(source: ModelSource) -> None:
    told = json.loads(environment(source))
    entry = {"name": "image", "datatype": "FP32", "shape": [-1, 3, 64, 96]}
    free = [{"dimension": 3, "name": "width"}, {"dimension": 2, "name": "height"}]
    (spec,) = ModelSource.from_json(json.dumps({**told, "inputs": [{**entry, "freeDimensions": free}]})).inputs
    assert (spec.shape, spec.free) == ((3, 64, 96), (None, "height", "width"))
    assert spec.declared_shape == (-1, 3, -1, -1)
    free[0]["dimension"] = 4
    with pytest.raises(FactoryError, match="none of its 3 after the batch"):
        ModelSource.from_json(json.dumps({**told, "inputs": [{**entry, "freeDimensions": free}]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}, "must be -1"),
        ({"inputs": [{"name": "x", "datatype": "STRING", "shape": [-1]}]}, "datatype STRING is not one of"),
        ({"weights": None}, "malformed"),
    ],
)
def test_a_malformed_variable_is_refused(source: ModelSource, change: dict[str, object], message: str) -> None:
    with pytest.raises(FactoryError, match=message):
        ModelSource.from_json(json.dumps({**json.loads(environment(source)), **change}))


def scripted() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        return torch.jit.trace(nn.Linear(1024, 4), torch.ones(1, 1024))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4))


class Versioned(nn.Module):
    """Keeps something beside its weights that no weights file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.version = nn.Linear(1024, 4), 3

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layer(frames) * self.version

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state["version"]


class Packed(Versioned):
    def get_extra_state(self) -> tuple[torch.Tensor]:  # type: ignore[override]
        return (torch.ones(2),)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:build", "no module no_such_module on the Python path .*mount a volume"),
        ("pitch_tracker:construct", "no callable construct; it offers .*build_tiny"),
        ("pitch_tracker", "not of the form module:callable"),
        ("pitch_tracker:save", "failed: TypeError"),
        ("json:JSONDecoder", "returned JSONDecoder, not a torch.nn.Module"),
        ("sys:no_such", r"sys \(built in\) has no callable no_such"),
        (f"{__name__}:scripted", "TorchScript module, .*return the torch.nn.Module that it was made from"),
        (f"{__name__}:lazy", "0.weight, 0.bias has no shape before the first call: give its layers their sizes"),
    ],
)
def test_a_wrong_factory_is_named_with_the_cure(source: ModelSource, factory: str, message: str) -> None:
    with pytest.raises(FactoryError, match=message):
        export(replace(source, factory=factory))


def test_what_a_module_keeps_beside_tensors_stays_as_the_factory_makes_it(tmp_path: Path) -> None:
    source = ModelSource("m", f"{__name__}:Versioned", (tmp_path / "w.safetensors").as_uri(), None, FRAMES)
    save_own_weights(source, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == {"layer.weight", "layer.bias"}
    module, frames = load_whole(source), torch.randn(2, 1024)
    assert module.version == 3
    torch.testing.assert_close(
        load_partition(source, 0, None).run(0, 1, {"frames": frames})["output_0"], module(frames)
    )


def test_weights_that_are_packed_away_are_refused(tmp_path: Path) -> None:
    source = ModelSource("m", f"{__name__}:Packed", None, None, FRAMES)
    with pytest.raises(FactoryError, match=r"keeps weights in _extra_state, a tuple, .* before it was quantised"):
        save_own_weights(source, tmp_path / "w.safetensors")


def test_inputs_that_forward_does_not_take_are_refused(source: ModelSource) -> None:
    with pytest.raises(FactoryError, match=r"forward\(frames.*does not fit spec.model.inputs"):
        export(replace(source, inputs=(*FRAMES, TensorSpec("rate", "FP32", (1,)))))


def halved() -> nn.Module:
    return nn.Sequential(nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()


def test_a_model_that_fails_on_its_declared_inputs_is_told_with_them(tmp_path: Path) -> None:
    source = ModelSource("m", f"{__name__}:halved", (tmp_path / "w.safetensors").as_uri(), None, FRAMES)
    save_own_weights(source, tmp_path / "w.safetensors")
    with pytest.raises(FactoryError, match=r"fails on inputs as they are declared \(frames FP32 \[-1, 1024\]\)"):
        measure(load_partition(source, 0, None), codecs={}, progress=lambda _share, _text: None)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, **given: torch.Tensor) -> torch.Tensor:
        return self.layer(given["right"] - given["left"])


def test_inputs_go_to_keywords_by_their_names(tmp_path: Path) -> None:
    inputs = (TensorSpec("left", "FP32", (8,)), TensorSpec("right", "FP32", (8,)))
    source = ModelSource("m", f"{__name__}:Keywords", (tmp_path / "w.safetensors").as_uri(), None, inputs)
    save_own_weights(source, tmp_path / "w.safetensors")
    given = {"left": torch.randn(3, 8), "right": torch.randn(3, 8)}
    got = load_partition(source, 0, None).run(0, 1, given)
    torch.testing.assert_close(got["output_0"], load_whole(source)(**given))


@pytest.mark.parametrize(
    ("size", "name", "message"),
    [
        (1, "tokens", "the example of the free dimension tokens is of 1, .* give an example of 2 at least"),
        (8, "batch", "cannot be called batch, as the first one is"),
    ],
)
def test_a_free_dimension_that_cannot_be_exported_is_refused_with_the_cure(size: int, name: str, message: str) -> None:
    inputs = (TensorSpec("frames", "FP32", (size, 1024), (name, None)),)
    with pytest.raises(FactoryError, match=message):
        export(ModelSource("m", f"{__name__}:Versioned", None, None, inputs))


def test_what_called_splitplane_is_no_line_of_the_model() -> None:
    def own() -> None:
        raise ValueError

    code = compile("def fail(model): model()", str(Path(splitplane.__file__).parent / "model" / "graphs.py"), "exec")
    names: dict[str, Any] = {}
    exec(code, names)  # puts a frame of Splitplane's own between this test and what fails
    for failing, line in ((own, "raise ValueError"), (operator.add, None)):
        with pytest.raises((ValueError, TypeError)) as caught:
            names["fail"](failing)
        assert (line or "") in (line_of_operation(caught.value) or "")
        assert (line_of_operation(caught.value) is None) is (line is None)


def test_a_wrong_digest_shows_both(source: ModelSource) -> None:
    with pytest.raises(WeightsError, match=f"expected {'0' * 64}, got {source.weights_sha256}"):
        export(replace(source, weights_sha256="0" * 64))


def test_a_file_that_changes_after_it_was_verified_is_verified_again(source: ModelSource, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = load_file(source.weights_uri.removeprefix("file://"))
    path.write_bytes(Path(source.weights_uri.removeprefix("file://")).read_bytes())
    changing = replace(source, weights_uri=path.as_uri())
    export(changing)
    save_file({name: tensor + 1 for name, tensor in state.items()}, path)
    with pytest.raises(WeightsError, match="wrong sha256"):
        export(changing)


def test_missing_files_and_foreign_addresses_are_named(source: ModelSource) -> None:
    with pytest.raises(WeightsError, match=r"No such file .*volume is mounted"):
        export(replace(source, weights_uri="file:///nowhere/at/all.safetensors"))
    with pytest.raises(WeightsError, match=r"file:///path, https://, .* a claim is pvc://claim/path"):
        export(replace(source, weights_uri="ftp://example.com/x"))


def test_missing_misshapen_and_unreadable_weights_are_named(source: ModelSource, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = load_file(source.weights_uri.removeprefix("file://"))
    other = replace(source, weights_uri=path.as_uri(), weights_sha256=None)
    save_file({name: tensor for name, tensor in state.items() if name != "conv2.bias"}, path)
    with pytest.raises(WeightsError, match=r"lack conv2\.bias: the factory's parameters must have the names"):
        load_partition(other, 0, None)
    save_file({f"model.{name}": tensor for name, tensor in state.items()}, path)
    with pytest.raises(WeightsError, match=r"of which model\.classifier\.bias is nearest to classifier\.bias"):
        load_partition(other, 0, None)
    save_file({name: tensor for name, tensor in state.items() if name != "conv2.bias"}, path)
    load_partition(other, 2, None)  # the missing tensor is of another range
    save_file({**state, "conv2.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"conv2\.bias is torch\.float32 \[3\] in the file; the factory makes it"):
        load_partition(other, 0, None)
    save_file({**state, "conv2.bias": state["conv2.bias"].half()}, path)
    with pytest.raises(WeightsError, match=r"float32 \[[0-9]*\]: save the file anew with torch\.float32 tensors"):
        load_partition(other, 0, None)
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_partition(other, 0, None)


def test_a_range_that_is_not_there_and_tensors_that_do_not_fit_are_refused(source: ModelSource) -> None:
    with pytest.raises(ValueError, match="has cuts 0 to 7"):
        load_partition(source, 3, 9)
    partition = load_partition(source, 0, 3)
    with pytest.raises(ValueError, match="not inside the resident range 0:3"):
        partition.run(2, 4, {})
    with pytest.raises(ValueError, match="cut 0 takes the tensors frames, not none"):
        partition.run(0, 2, {})
    with pytest.raises(ValueError, match=r"must be FP32 of shape \[-1, 1024\], not torch.float32 of \[1, 1000\]"):
        partition.run(0, 2, {"frames": torch.zeros(1, 1000)})


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({}, 6, "no usable Kubernetes credentials"),
        ({"factory": "nowhere:build"}, 3, "no module nowhere on the Python path"),
        ({"weights_sha256": "0" * 64}, 4, "wrong sha256: expected 0000"),
    ],
)
def test_a_profile_job_ends_with_one_clear_line_and_a_code_of_its_own(
    source: ModelSource, tmp_path: Path, change: dict[str, str], code: int, message: str
) -> None:
    job = subprocess.run(
        [sys.executable, "-m", "splitplane.runtime.profile_job"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(EXAMPLES),
            "OMP_NUM_THREADS": "1",
            "SPLITPLANE_NAMESPACE": "default",
            "SPLITPLANE_RESULT_CONFIGMAP": "result",
            "SPLITPLANE_DEVICE_CLASS": "x86",
            "SPLITPLANE_MODEL": environment(replace(source, **change)),  # type: ignore[arg-type]
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert job.returncode == code, job.stderr
    assert message in job.stderr.splitlines()[-1]
