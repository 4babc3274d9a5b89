"""A base image that cannot be made says why, in the words of the program that failed."""

from pathlib import Path

import pytest

from kindcluster import base_image
from kindcluster.engine import Engine
from splitplane.local.errors import LocalError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "large").write_bytes(bytes(1 << 20))  # more than a pipe holds: tar must not wait for a reader that left
    return folder


def engine(folder: Path, script: str) -> Engine:
    docker = folder / "docker"
    docker.write_text(f"#!/bin/sh\n{script}\n")
    docker.chmod(0o755)
    return Engine(str(docker), None)


def test_what_docker_says_is_passed_on(root: Path, tmp_path: Path) -> None:
    full = engine(tmp_path, "head -c 10 >/dev/null; echo 'no space left on device' >&2; exit 1")
    with pytest.raises(LocalError, match=r"docker import splitplane-kind/python:.*: no space left on device"):
        base_image._import(full, root, base_image.name())


def test_what_tar_says_is_passed_on(tmp_path: Path) -> None:
    reads = engine(tmp_path, "cat >/dev/null")
    with pytest.raises(LocalError, match=r"tar of the base image's files: .*missing"):
        base_image._import(reads, tmp_path / "missing", base_image.name())


def test_the_files_reach_docker_without_those_that_no_image_needs(root: Path, tmp_path: Path) -> None:
    (root / "usr/share/doc").mkdir(parents=True)
    (root / "usr/share/doc/README").write_text("x")
    takes = engine(tmp_path, f"test \"$1 $4\" = 'import {base_image.name()}' && tar -t >{tmp_path}/list")
    base_image._import(takes, root, base_image.name())
    names = (tmp_path / "list").read_text().split()
    assert "./large" in names
    assert "./usr/share/doc/README" not in names
