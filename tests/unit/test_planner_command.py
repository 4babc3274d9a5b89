"""``splitplane plan`` answers what the planner would choose, from files alone."""

from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from splitplane.api.profiles import from_device
from splitplane.cli.plan import plan as command
from splitplane.planner import load_call, plan
from tests.support.planner_cases import crepe

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = str(ROOT / "examples" / "pitch-tracker.yaml")
FAST = "edge:cloud=50Mbit,2ms"

app = typer.Typer()
app.command()(command)


@pytest.fixture
def profile(tmp_path: Path) -> str:
    model = crepe()
    tensor = {"name": "frames", "datatype": "FP32", "shape": [-1, 1024]}
    spec = {
        "fingerprint": model.fingerprint,
        "model": {"factory": "pitch_tracker:build", "weightsSha256": "0" * 64},
        "inputs": [tensor],
        "outputs": [tensor],
        "cuts": [
            {
                "name": cut.name,
                "tensors": [{"name": "x", "datatype": "FP32", "sampleShape": list(cut.tensors[0].shape)}],
                "wireBytes": [{"codec": codec, "bytes": size} for codec, size in cut.wire_bytes.items()],
                "schemaHash": cut.schema_hash,
            }
            for cut in model.cuts
        ],
        "segments": [{"name": f"block-{index}", "weightBytes": size} for index, size in enumerate(model.weight_bytes)],
        "activationBytes": model.activation_bytes,
        "devices": [from_device(device).dump() for device in model.devices.values()],
    }
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"kind": "ModelProfile", "metadata": {"name": "crepe"}, "spec": spec}))
    return str(path)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def unwrapped(output: str) -> str:
    """An error's text without the frame that it is folded into."""
    return "".join(output.replace("│", "").split())


def chosen(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("chosen"))


def test_a_fast_link_a_slow_link_and_a_missing_tier_give_three_plans(profile: str):
    constant = (PIPELINE, profile, "--rate", "3.5", "--scv", "0")
    assert "edge:0-1|cloud:1-6 int8" in chosen(run(*constant, "--link", FAST))
    assert "edge:0-2|cloud:2-6 int8" in chosen(run(*constant, "--link", "edge:cloud=3Mbit,2ms"))
    assert "edge:0-6" in chosen(run(*constant, "--link", FAST, "--without", "cloud"))


def test_the_baselines_are_shown_with_the_limits_that_they_break(profile: str):
    output = run(PIPELINE, profile, "--link", FAST)
    assert "edge-only" in output
    assert "privacy" in next(line for line in output.splitlines() if line.startswith("cloud-only"))


def test_a_recorded_call_replays(profile: str):
    snapshot, policy, now = load_call(run(PIPELINE, profile, "--link", FAST, "--price", "cloud=0.60", "--record"))
    assert str(plan(snapshot, policy, now).target.plan).startswith("edge:")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--link", "edge=50Mbit", "edge:cloud=50Mbit,2ms"),
        ("--link", "edge:moon=50Mbit", "edge:cloud=50Mbit,2ms"),
        ("--link", "edge:cloud=fast", "3Mbit"),
        ("--price", "moon=1", "moon"),
        ("--price", "cloud=cheap", "cloud=0.30"),
        ("--without", "moon", "moon"),
    ],
)
def test_a_condition_that_cannot_be_read_is_refused_with_an_example(profile: str, option: str, value: str, says: str):
    result = CliRunner().invoke(app, [PIPELINE, profile, option, value])
    assert result.exit_code == 2
    assert says in unwrapped(result.output)


def test_a_file_of_another_kind_is_refused(profile: str):
    result = CliRunner().invoke(app, [profile, profile])
    assert result.exit_code == 2
    assert "InferencePipeline" in result.output
