"""Paths under a mountPath become the pod's own, and nothing else does."""

from pathlib import Path

import pytest

from splitplane.local.agent.errors import StartError
from splitplane.local.agent.paths import Mount, Rewriter, inside, normal

REWRITE = Rewriter(
    [
        Mount("/models", Path("/pods/1/m")),
        Mount("/models/code", Path("/pods/1/c")),
        Mount("/etc/app/conf.json", Path("/pods/1/conf")),
    ]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models", "/pods/1/m"),
        ("/models/", "/pods/1/m/"),
        ("/models/a/b.safetensors", "/pods/1/m/a/b.safetensors"),
        ("/models/code/x.py", "/pods/1/c/x.py"),
        ("/models/codec", "/pods/1/m/codec"),
        ("file:///models/a", "file:///pods/1/m/a"),
        ("PYTHONPATH=/models/code:/models:/usr/lib", "PYTHONPATH=/pods/1/c:/pods/1/m:/usr/lib"),
        ('{"weights":{"uri":"file:///models/w"}}', '{"weights":{"uri":"file:///pods/1/m/w"}}'),
        ("--dir=/models,--other=/models", "--dir=/pods/1/m,--other=/pods/1/m"),
        ("cat /models/x > /models/y; ls", "cat /pods/1/m/x > /pods/1/m/y; ls"),
        ("/etc/app/conf.json", "/pods/1/conf"),
        ("open('/models/x')", "open('/pods/1/m/x')"),
    ],
)
def test_a_path_under_a_mount_is_rewritten(text: str, expected: str) -> None:
    assert REWRITE(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/models2",
        "/models.bak",
        "/models-old/x",
        "/srv/models/x",
        "https://host/models/x",
        "s3://bucket/models/x",
        "./models",
        "../models/x",
        "~/models",
        "models/x",
        "${ROOT}/models",
        "$(ROOT)/models",
        "//models",
        "/etc/app/conf.json5",
        "/etc/app",
        "",
    ],
)
def test_what_is_not_a_whole_component_of_a_mount_stays(text: str) -> None:
    assert REWRITE(text) == text


def test_a_replacement_is_not_rewritten_again() -> None:
    rewrite = Rewriter([Mount("/a", Path("/b/a")), Mount("/b", Path("/a/b"))])
    assert rewrite("/a:/b") == "/b/a:/a/b"


def test_without_mounts_nothing_changes() -> None:
    assert Rewriter([])("/models") == "/models"


def test_mount_paths_lose_needless_slashes() -> None:
    assert normal("/a//b/./") == "/a/b"


@pytest.mark.parametrize("path", ["/", "relative", "/a/../b"])
def test_impossible_mount_paths_are_refused(path: str) -> None:
    with pytest.raises(StartError, match="mountPath"):
        normal(path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_a_sub_path_cannot_leave_its_volume(path: str) -> None:
    with pytest.raises(StartError, match="must be relative"):
        inside(Path("/volume"), path)
