"""The generated CRDs: bounded, free of floats, structural, and what is committed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from splitplane.api import crds
from splitplane.api.fields import Codec, Model
from splitplane.domain.profiles import CODECS

ROOT = Path(__file__).parents[2]
MANIFESTS = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from _nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from _nodes(child)


def _schema(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_committed_files_are_what_the_models_give() -> None:
    assert crds.main(["--check", "--root", str(ROOT)]) == 0


def test_check_names_the_file_that_is_out_of_date_and_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").touch()
    assert crds.main(["--root", str(tmp_path)]) == 0
    stale = tmp_path / "crds" / "splitplane.dev_routetables.yaml"
    stale.write_text(stale.read_text().replace("rtable", "rt"))
    capsys.readouterr()
    assert crds.main(["--check", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(stale) in error
    assert "splitplane.api.crds" in error
    assert "inferencepipelines" not in error


def test_generating_outside_the_repository_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        crds.main(["--root", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_every_generation_gives_the_same_bytes() -> None:
    assert crds.files(ROOT) == crds.files(ROOT)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["spec"]["names"]["kind"])
class TestManifest:
    def test_holds_no_floats_references_or_unions(self, manifest: dict[str, Any]) -> None:
        for node in _nodes(_schema(manifest)):
            assert node.get("type") != "number"
            assert not {"$ref", "$defs", "oneOf", "allOf"} & node.keys()
            assert "anyOf" not in node or node.get("x-kubernetes-int-or-string")

    def test_limits_every_string_list_map_and_integer(self, manifest: dict[str, Any]) -> None:
        properties = _schema(manifest)["properties"]
        assert [*crds.unbounded(properties["spec"]), *crds.unbounded(properties.get("status", {}))] == []

    def test_every_rule_has_a_message_that_is_no_bare_expression(self, manifest: dict[str, Any]) -> None:
        for node in _nodes(_schema(manifest)):
            for rule in node.get("x-kubernetes-validations", []):
                assert rule["message"]
                assert "self" not in rule["message"]

    def test_belongs_to_the_category_and_has_a_short_name_and_an_age(self, manifest: dict[str, Any]) -> None:
        names = manifest["spec"]["names"]
        assert names["categories"] == ["splitplane"]
        assert len(names["shortNames"]) == 1
        assert "Age" in [column["name"] for column in manifest["spec"]["versions"][0]["additionalPrinterColumns"]]


def test_pipeline_shows_the_promised_columns_in_order() -> None:
    (pipeline,) = [manifest for manifest in MANIFESTS if manifest["spec"]["names"]["shortNames"] == ["ipipe"]]
    columns = pipeline["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"].upper() for column in columns if not column.get("priority")]
    assert shown == ["READY", "REASON", "PLAN", "REPLICAS", "P95", "SLO", "COST/H", "AGE"]


def test_pipeline_starts_with_a_status_that_no_operator_has_seen() -> None:
    (pipeline,) = [manifest for manifest in MANIFESTS if manifest["spec"]["names"]["shortNames"] == ["ipipe"]]
    assert _schema(pipeline)["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_a_model_without_limits_is_refused_by_name() -> None:
    class Loose(Model):
        """A resource whose author forgot."""

        spec: dict[str, str]

    loose = crds.Resource(Loose, "Loose", "looses", "loose", ())
    with pytest.raises(ValueError, match=r"\.spec: a map without maxProperties"):
        crds.schema(loose)


def test_a_pipeline_may_name_every_codec_that_the_data_plane_has():
    assert get_args(Codec) == CODECS
