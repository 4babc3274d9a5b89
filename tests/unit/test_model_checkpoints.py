"""Torch checkpoints: tensors alone are read, code is never run, and what is damaged is told from what holds code."""

import argparse
import io
import os
import pickle
import random
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource, WeightsError
from splitplane.model.checkpoints import load_checkpoint
from splitplane.model.weights import WeightsFile


def opened(path: Path) -> WeightsFile:
    return WeightsFile.open(ModelSource("m", "nowhere:build", path.as_uri(), None, (TensorSpec("x", "FP32", (4,)),)))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/splitplane-evil",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_checkpoint_of_tensors_is_read(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tied = torch.randn(4, 6).T
    state = {"a.weight": tied, "b.weight": tied, "n": torch.arange(3)}
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    read = opened(path).read(["a.weight", "n"], {})
    path.write_bytes(b"gone")
    assert torch.equal(read["a.weight"], tied)
    assert read["n"].tolist() == [0, 1, 2]


def test_a_sparse_tensor_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"tensor weight of .* is sparse: save it dense"):
        opened(tmp_path / "model.pt").read(["weight"], {})


def test_a_pickle_that_runs_code_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for content in (pickle.dumps(_Evil()), pickle.dumps({"weight": _Evil()}, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"never loaded here .*convert it once.*safetensors"):
            opened(path).read(["weight"], {})
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match=r"never loaded here .*torch.nn.modules.linear.Linear"):
        opened(path).read(["weight"], {})
    torch.save({"state_dict": {"weight": torch.ones(2)}, "options": argparse.Namespace()}, path)
    with pytest.raises(WeightsError, match=r"argparse\.Namespace") as caught:
        opened(path).read(["weight"], {})
    command = shlex.split(str(caught.value).partition("where you trust it: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    converted = tmp_path / "model.safetensors"
    assert opened(converted).read(["weight"], {})["weight"].tolist() == [1, 1]
    torch.save([torch.zeros(2)], path)
    with pytest.raises(WeightsError, match="holds list, not a mapping"):
        opened(path).read(["weight"], {})
    assert not Path("/tmp/splitplane-evil").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("way", ["replaced", "written", "gone"])
def test_a_file_that_is_another_one_when_it_is_read_is_refused(suffix: str, way: str, tmp_path: Path) -> None:
    path, other = tmp_path / f"model.{suffix}", tmp_path / f"other.{suffix}"
    save: Callable[[object, Path], None] = save_file if suffix == "safetensors" else torch.save  # type: ignore[assignment]
    save({"weight": torch.ones(4)}, path)
    save({"weight": torch.zeros(4)}, other)
    file = opened(path)
    read = file.each(["weight"], {})
    assert file.read(["weight"], {})["weight"].tolist() == [1, 1, 1, 1]
    if way == "replaced":
        other.replace(path)
    elif way == "written":
        path.write_bytes(other.read_bytes())
    else:
        path.unlink()
    with pytest.raises(WeightsError, match="was replaced, removed or written to"):
        dict(read)


def test_a_file_that_changes_between_two_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    read = opened(path).each(["a", "b"], {})
    assert next(read)[0] == "a"
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, tmp_path / "other")
    path.write_bytes((tmp_path / "other").read_bytes())
    with pytest.raises(WeightsError, match="was replaced, removed or written to while it was read"):
        dict(read)


STATE = {"weight": torch.arange(6.0).reshape(2, 3).T, "bias": torch.ones(4)}


@pytest.mark.parametrize(
    "held",
    [
        {"net": STATE, "options": argparse.Namespace()},
        {**STATE, "steps": 3, "options": argparse.Namespace()},
        {"epoch": 3, "model": torch.nn.ParameterDict(STATE)},
        {"net": STATE, "epoch": 3},
    ],
    ids=["another name", "beside other things", "a module", "no code"],
)
def test_the_way_out_finds_the_tensors_wherever_they_are(held: dict[str, object], tmp_path: Path) -> None:
    path, converted = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save(held, path)
    with pytest.raises(WeightsError) as caught:
        opened(path).read([*STATE], {})
    command = shlex.split(str(caught.value).partition("where you trust it: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    found = opened(converted).read([*STATE], {})
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_files_that_are_damaged_or_of_another_kind_are_told_from_those_that_hold_code(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"

    def refused(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            opened(path).read(["weight"], {})
        return str(caught.value).partition("(")[0] + str(caught.value).partition(")")[2]

    def written(write: Callable[[Path], object]) -> bytes:
        write(tmp_path / "whole")
        return (tmp_path / "whole").read_bytes()

    zipped = written(lambda to: torch.save(STATE, to))
    bare = written(lambda to: torch.save(STATE, to, _use_new_zipfile_serialization=False))
    for whole in (zipped, bare):
        for length in (3, 10, 100, len(whole) // 2, len(whole) - 1):
            told = refused(whole[:length])
            assert "copied whole" in told
            assert "runs code" not in told
            assert "weights_only=False" not in told
    arrays = io.BytesIO()
    np.savez(arrays, weight=np.ones(2))
    assert "zip archive that torch.save did not write" in refused(arrays.getvalue())
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, and files of it are about
        script = written(lambda to: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), to))
    assert "is a TorchScript archive" in refused(script)


def test_no_damage_to_a_checkpoint_ends_in_anything_but_a_refusal_or_tensors(tmp_path: Path) -> None:
    path, chance = tmp_path / "model.pt", random.Random(0)
    for zipped in (True, False):
        torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 6)):
                damaged[chance.randrange(2, min(len(damaged), 1200))] = chance.randrange(256)
            path.write_bytes(damaged[: chance.randrange(3, 1200)] if chance.random() < 0.3 else damaged)
            try:
                load_checkpoint(path)
            except WeightsError:
                continue
