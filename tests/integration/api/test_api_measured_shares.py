"""What the command line measures on a user's own inputs arrives in the ModelProfile, and the planner finds it there."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from typer.testing import CliRunner

from splitplane import api
from splitplane.api.tensors import Tensor
from splitplane.cli import app
from splitplane.domain.profiles import Profile
from splitplane.model import ModelGraph, ModelSource, export
from tests.support import blobs
from tests.support.command_output import unwrapped

WHERE: Any = {"group": "splitplane.dev", "version": "v1alpha1", "namespace": "default", "plural": "modelprofiles"}


def written(graph: ModelGraph, name: str, fingerprint: str) -> dict[str, Any]:
    shapes = [Tensor.model_validate({"name": "image", "datatype": "FP32", "shape": [-1, 1, 12, 12]})]
    spec = api.from_profile(
        Profile(fingerprint, graph.cuts, graph.weight_bytes, 1), factory=graph.source.factory,
        weights_sha256="0" * 64, inputs=tuple(shapes), outputs=tuple(shapes), segment_names=graph.segments,
    )  # fmt: skip
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {"name": name},
        "spec": spec.dump(),
    }


def arguments(source: ModelSource, calibration: Path, profile: str) -> list[str]:
    given = ["--input", "image:FP32:-1,1,12,12", "--weights", str(source.weights_uri)]
    return [source.factory, *given, "--calibration", str(calibration), "--profile", profile]


def test_measured_shares_reach_the_planner_by_the_profile(
    installed: None, api_kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api_kubeconfig))
    source, calibration = blobs.write(tmp_path, 240)
    graph = export(source)
    with config.new_client_from_config(str(api_kubeconfig)) as connection:
        profiles = client.CustomObjectsApi(connection)
        profiles.create_namespaced_custom_object(body=written(graph, "blobs", graph.fingerprint), **WHERE)
        profiles.create_namespaced_custom_object(body=written(graph, "other", "f" * 32), **WHERE)
        for command, more in (("accuracy", []), ("leak", ["--cut", "2", "--steps", "150", "--threads", "1"])):
            done = CliRunner().invoke(app, ["model", command, *arguments(source, calibration, "blobs"), *more])
            assert done.exit_code == 0, done.output
        body: Any = profiles.get_namespaced_custom_object(name="blobs", **WHERE)
        refused = CliRunner().invoke(app, ["model", "accuracy", *arguments(source, calibration, "other")])
        assert "isofanothermodel" in unwrapped(refused.output)
        assert "cosine" not in refused.output  # before it is measured
        weak = CliRunner().invoke(app, ["model", "leak", *arguments(source, calibration, "blobs"), "--steps", "2"])
        assert weak.exit_code == 2
        assert "Rank correlation" in weak.output  # what was got is told nevertheless
        assert "Tooweakforalimittoreston:anattackwastrainedfor2stepsonly" in unwrapped(weak.output)
        after: Any = profiles.get_namespaced_custom_object(name="blobs", **WHERE)
        assert after["spec"] == body["spec"]
    spec = api.ModelProfileSpec.parse(body["spec"])
    assert spec.leak_measurement is not None
    assert spec.leak_measurement.samples == 240
    assert spec.leak_measurement.calibration_sha256 == sha256(calibration.read_bytes()).hexdigest()
    cuts = api.to_profile(spec).cuts
    assert cuts[1].leakage["int8"] == 1.0  # nothing shallower was attacked
    assert cuts[2].leakage["fp32"] == cuts[2].leakage["int8"] < 1.0
    assert cuts[1].accuracy_loss.keys() == {"fp16", "bf16", "int8", "int4"}  # fp32 loses nothing, and needs no bound
