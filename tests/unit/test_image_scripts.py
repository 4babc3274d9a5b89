"""What the Dockerfiles run last: bytecode of just what programs load, and a bill of exactly what is there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

IMAGES = Path(__file__).parents[2] / "images"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of our own that loads one module beside it and one of a foreign folder, and has a third."""
    for name, text in {
        "own/program.py": "import used, foreign",
        "own/used.py": "",
        "own/unused.py": "",
        "base/foreign.py": "print('read')",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


def python(folder: Path, *arguments: str) -> str:
    environment = {"PYTHONPATH": f"{folder / 'own'}:{folder / 'base'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    return done.stdout + done.stderr


def test_bytecode_is_made_of_what_a_program_loads_and_used_from_where_it_is_put(program: Path) -> None:
    beside = program / "beside"
    python(program, str(IMAGES / "bytecode.py"), "--own", str(program / "own"), "--beside", str(beside), "program")
    made = {file.name.split(".")[0] for file in (program / "own").rglob("*.pyc")}
    assert made == {"program", "used"}
    assert not list((program / "base").rglob("*.pyc"))
    # As the last stage copies it over its root:
    (foreign,) = (beside / program.relative_to("/")).rglob("*.pyc")
    foreign.parent.rename(program / "base" / "__pycache__")
    said = python(program, "-v", "-c", "import program")
    for name in ("program", "used", "foreign"):
        (line,) = [line for line in said.splitlines() if f"{name}.cpython" in line and "code object from" in line]
        assert line.startswith("# code object from '"), line


def test_bytecode_that_is_there_is_left_as_it_is(program: Path) -> None:
    cached = Path(importlib.util.cache_from_source(str(program / "base" / "foreign.py")))
    cached.parent.mkdir()
    cached.write_bytes(b"")
    arguments = (str(IMAGES / "bytecode.py"), "--beside", str(program / "beside"), "program")
    python(program, *arguments)
    assert not list((program / "beside").rglob("foreign*"))
    assert cached.read_bytes() == b""


def test_the_bill_lists_every_python_package_wherever_it_is(tmp_path: Path) -> None:
    for place, name, version in (
        ("opt/venv/lib/python3.12/site-packages/aiohttp-3.14.5.dist-info", "aiohttp", "3.14.5"),
        ("opt/venv/lib/python3.12/site-packages/splitplane-0.1.0.dist-info", "splitplane", "0.1.0"),
        ("usr/local/lib/python3.12/site-packages/pip-26.0.dist-info", "pip", "26.0"),
        ("opt/venv/lib/python3.12/site-packages/setuptools/_vendor/Zipp_x-3.0.dist-info", "Zipp_x", "3.0"),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    found = {item["purl"] for item in script("sbom").python_packages(str(tmp_path))}
    assert found == {
        "pkg:pypi/aiohttp@3.14.5", "pkg:pypi/splitplane@0.1.0", "pkg:pypi/pip@26.0", "pkg:pypi/zipp-x@3.0",
    }  # fmt: skip


@pytest.mark.parametrize(("digests", "hashes"), [("", ""), ("1a 2b", " --hash=sha256:1a --hash=sha256:2b")])
def test_torch_of_an_index_of_its_own_is_held_to_the_digests_that_the_build_names(
    tmp_path: Path, digests: str, hashes: str
) -> None:
    text = (IMAGES / "runtime" / "Dockerfile").read_text()
    (step,) = [part for part in text.replace("\\\n", "").split("\nRUN ") if part.startswith("set -eu; lock=")]
    command = step.split("\n", 1)[0].replace("/build/", f"{tmp_path}/")
    (tmp_path / "runtime.lock").write_text(
        "numpy==2.0 \\\n    --hash=sha256:aa\ntorch==2.15.0 \\\n    --hash=sha256:bb\n"
    )
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    pip.chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "TORCH_INDEX_URL": "http://index.example",
        "TORCH_SHA256": digests,
    }
    subprocess.run(["sh", "-c", command], env=variables, check=True, timeout=120)

    assert (tmp_path / "torch.txt").read_text() == f"torch==2.15.0{hashes}\n"
    own, rest = (tmp_path / "calls").read_text().splitlines()
    assert all("--only-binary=:all:" in call for call in (own, rest))  # a source archive runs code while it is built
    assert own.endswith(f"--index-url http://index.example --requirement {tmp_path}/torch.txt")
    assert rest.endswith(f"--require-hashes --requirement {tmp_path}/rest.lock")
    assert (tmp_path / "rest.lock").read_text() == "numpy==2.0 \\\n    --hash=sha256:aa\n"
