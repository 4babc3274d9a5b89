"""``splitplane model``: cuts listed and checked from the command line."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from splitplane.cli import app
from tests.support.command_output import unwrapped
from tests.support.file_servers import digest_of, web_server
from tests.support.model_zoo import HAND_MADE, VECTOR, Model

SKIPS = next(model for model in HAND_MADE if model.name == "LongSkips")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["model", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_inspect_lists_cuts_with_what_crosses_them_and_needs_no_weights() -> None:
    cuts = json.loads(run("inspect", SKIPS.factory, "--input", "x:FP32:-1,64", "--json"))["cuts"]
    assert [cuts[0]["name"], cuts[-1]["name"]] == ["input", "output"]
    assert cuts[0]["tensors"] == {"x": ["FP32", -1, 64]}
    assert cuts[0]["wireBytes"]["fp32"] == 64 * 4
    assert len(cuts) > 3
    # At the bottom all three skips cross with what flows on.
    assert max(len(cut["tensors"]) for cut in cuts) == 3
    layers = ((64, 32), (32, 16), (16, 8), (16, 16), (32, 32), (64, 64))
    assert sum(cut["weightBytesAfter"] for cut in cuts) == 4 * sum(wide * out + out for wide, out in layers)
    products = 2 * sum(wide * out for wide, out in layers)
    assert products <= sum(cut["flopsAfter"] for cut in cuts) <= 1.2 * products


def test_inspect_says_why_and_where_a_model_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(
        "from torch import nn\n\n\nclass Moody(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(4, 4)\n\n    def forward(self, x):\n        if x.sum() > 0:\n"
        "            return self.a(x)\n        return x\n"
    )
    told = unwrapped(run("inspect", "moody:Moody", "--input", "x:FP32:-1,4", "--path", str(tmp_path)))
    assert "x.sum()>0" in told
    assert "moody.py:10" in told


def test_inspect_says_why_a_model_has_one_segment() -> None:
    told = unwrapped(run("inspect", "torch.nn:Tanh", "--input", "input:FP32:-1,4"))
    assert "torch.nn:Tanhhasnoplaceworthacut,andisservedwhole:thereisnoheavyoperationinit" in told


def test_check_tells_for_each_cut_how_far_its_sides_are_from_the_whole(tmp_path: Path) -> None:
    source = SKIPS.source(tmp_path)
    assert source.weights_uri is not None
    text = run("check", SKIPS.factory, "--input", "x:FP32:-1,64", "--weights", source.weights_uri, "--json")
    report = json.loads(text)
    assert report["equal"] is True
    errors = report["largestRelativeError"]
    assert {"no cut", "cut 1"} <= errors.keys()
    assert all(error <= report["tolerance"] for error in errors.values())


def test_check_compares_on_real_inputs_where_they_are_given(tmp_path: Path) -> None:
    weights, inputs = SKIPS.source(tmp_path).weights_uri, tmp_path / "inputs.safetensors"
    assert weights is not None
    arguments = ("check", SKIPS.factory, "--input", "x:FP32:-1,64", "--weights", weights, "--calibration", str(inputs))
    save_file({"x": torch.randn(4, 64)}, inputs)
    assert "batch1,3┃" in unwrapped(run(*arguments))
    save_file({"y": torch.randn(4, 64)}, inputs)
    assert "lackstheinputx" in unwrapped(run(*arguments, code=2))


def test_check_tells_how_far_a_download_of_the_weights_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = SKIPS.source(tmp_path)
    assert source.weights_uri is not None
    weights = Path(source.weights_uri.removeprefix("file://"))
    monkeypatch.setenv("SPLITPLANE_WEIGHTS_CACHE", str(tmp_path / "cache"))
    with web_server(weights.parent) as port:
        uri, sha256 = f"http://127.0.0.1:{port}/{weights.name}", digest_of(weights.read_bytes())
        run("check", SKIPS.factory, "--input", "x:FP32:-1,64", "--weights", uri, "--sha256", sha256)
        assert f"weights {uri}: 0 of 0 MB" in caplog.text
        wrong = unwrapped(
            run("check", SKIPS.factory, "--input", "x:FP32:-1,64", "--weights", uri, "--sha256", "0" * 64, code=2)
        )
    assert "havethewrongsha256" in wrong


def test_an_interrupted_check_ends_at_once_with_its_processes(tmp_path: Path) -> None:
    model = Model("slow", "tests.support.model_graphs:Slow", VECTOR)
    weights = model.source(tmp_path).weights_uri
    assert weights is not None
    environment = {**os.environ, "SLOW_TEST_FOLDER": str(tmp_path)}
    # A shell that runs the tests in its background has them ignore SIGINT, and so would the command.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}; from splitplane.cli import app; app()"
    arguments = ("-c", program, "model", "check", model.factory, "--input", "x:FP32:-1,64", "--weights", weights)
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as check:
        try:
            begun = time.monotonic()
            while not list(tmp_path.glob("running-*")):
                assert check.poll() is None
                assert time.monotonic() < begun + 300
                time.sleep(0.1)
            check.send_signal(signal.SIGINT)
            _, told = check.communicate(timeout=300)  # until all have ended that could write to it
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(check.pid, signal.SIGKILL)
    assert check.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in told


def test_check_tells_which_batch_a_range_fails_on_and_why(tmp_path: Path) -> None:
    model = Model("few", "tests.support.model_graphs:FewSamples", VECTOR)
    weights = model.source(tmp_path).weights_uri
    assert weights is not None
    text = unwrapped(run("check", model.factory, "--input", "x:FP32:-1,64", "--weights", weights, code=1))
    assert "cut1,batch8:ValueError:dimension0oftensorx" in text
    assert "batchfrom1to5" in text


@pytest.mark.parametrize("text", ["x", "x:FP33:-1,4", "x:FP32:4", "x:FP32:-1,0", "x:FP32:-1,n="])
def test_an_input_of_another_form_is_told_what_to_write(text: str) -> None:
    told = unwrapped(run("inspect", "nowhere:build", "--input", text, code=2))
    assert "frames:FP32:-1,1024" in told


def test_an_input_that_is_given_twice_is_refused() -> None:
    told = run("inspect", SKIPS.factory, "--input", "x:FP32:-1,64", "--input", "x:FP32:-1,64", code=2)
    assert "inputxisgivenmorethanonce" in unwrapped(told)


def test_help_keeps_what_stands_in_brackets() -> None:
    told = unwrapped(run("profile", "--help"))
    assert "Needssplitplane[plot]." in told
    assert "[default:(416)]" in told
    assert "Needssplitplane[runtime]." in unwrapped(run("--help"))


def test_a_factory_that_is_not_there_is_named() -> None:
    assert "nowhere" in run("inspect", "nowhere:build", "--input", "x:FP32:-1,4", code=2)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("no/such/x.png", "nofolder"),
        ("x.foo", "fooisnoformofpicture"),
        ("x", "nametheformofthepicturebyanending"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(picture: str, message: str) -> None:
    told = run("profile", "nowhere:build", "--input", "x:FP32:-1,4", "--plot", picture, code=2)
    assert message in unwrapped(told)


def test_profile_measures_the_factorys_own_values_and_draws_them(tmp_path: Path) -> None:
    picture = tmp_path / "profile.png"
    arguments = ["model", "profile", SKIPS.factory, "--input", "x:FP32:-1,64", "--path", ".", "--json"]
    done = subprocess.run(
        [Path(sys.executable).with_name("splitplane"), *arguments, "--seconds", "1", "--threads", "1",
         "--batch", "2", "--plot", str(picture)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [timing["batch"] for timing in result["device"]["timings"]] == [2]
    assert result["device"]["prefixSeconds"][-1] > 0.0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "segments" in done.stderr


def test_profile_draws_the_leak_too_where_real_inputs_are_given(tmp_path: Path) -> None:
    picture, inputs = tmp_path / "profile.png", tmp_path / "inputs.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"x": torch.randn(220, 2, generator=generator) @ torch.randn(2, 64, generator=generator)}, inputs)
    done = subprocess.run(
        [Path(sys.executable).with_name("splitplane"), "model", "profile", SKIPS.factory, "--input", "x:FP32:-1,64",
         "--path", ".", "--json", "--seconds", "1", "--threads", "1", "--batch", "2", "--plot", str(picture),
         "--calibration", str(inputs), "--leak-seconds", "12"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    inner = range(1, len(result["cuts"]) - 1)
    assert {each["cut"] for each in result["leak"]["attacks"]} <= set(inner)
    assert result["leak"]["samples"] == 220
    # Three panels are half as high again as two: 10.5 inches at 150 dots.
    assert int.from_bytes(picture.read_bytes()[20:24], "big") == 1575
