"""A Debian with Python, made from Debian's packages alone: what images start from where no registry is reachable."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from kindcluster.engine import LABEL, Engine, run
from splitplane.local.errors import LocalError
from splitplane.local.paths import cache_home

_SUITE = "bookworm"
_REPOSITORY = "splitplane-kind/python"
_PACKAGES = ("ca-certificates", "python3", "python3-venv", "python-is-python3", "tini")
_OWN_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_UNWANTED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)


def name() -> str:
    """Of the image; its tag changes with what is in it."""
    contents = repr((_PACKAGES, _UNWANTED, os.environ.get("DEBIAN_MIRROR")))
    return f"{_REPOSITORY}:{_SUITE}-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"


def ensure(engine: Engine) -> str:
    """The image's name; made now if it is not there yet.

    Raises:
        LocalError: debootstrap is missing, not allowed, or fails; the message says what to do.
    """
    image = name()
    if not engine.has_image(image):
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise LocalError(
                "No image registry is reachable, and a base image can be made from Debian's packages only by root with "
                "debootstrap (apt-get install debootstrap). Or name one that Docker has: BASE_IMAGE=..."
            )
        _make(engine, image)
        engine.remove_others(f"{_REPOSITORY}:*", image)
    return image


def _make(engine: Engine, image: str) -> None:
    work = cache_home() / "kind"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix=".base-") as scratch:
        root = Path(scratch) / "root"
        mirror = [os.environ["DEBIAN_MIRROR"]] if "DEBIAN_MIRROR" in os.environ else []
        run("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(root), *mirror)
        if _OWN_CERTIFICATES.is_dir():  # this machine's own authorities, behind a proxy that inspects
            shutil.copytree(_OWN_CERTIFICATES, root / _OWN_CERTIFICATES.relative_to("/"), dirs_exist_ok=True)
            run("chroot", str(root), "update-ca-certificates")
        # As in the published images of Debian: what apt-get leaves behind would be in every image made from this one.
        (root / "etc/apt/apt.conf.d/docker-clean").write_text('Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n')
        _import(engine, root, image)


def _import(engine: Engine, root: Path, image: str) -> None:
    """The files below ``root`` as ``image``. Raises ``LocalError`` with the words of the one that failed."""
    excluded = [f"--exclude=./{folder}/*" for folder in _UNWANTED]
    archiving = subprocess.Popen(
        ["tar", "--directory", str(root), "--numeric-owner", *excluded, "--create", "."],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert archiving.stdout is not None
    assert archiving.stderr is not None
    with archiving, archiving.stdout as archive:
        importing = subprocess.run(
            [engine.docker, "import", f"--change=LABEL {LABEL}", "-", image],
            stdin=archive, env=engine.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        archive.close()  # else a tar whose reader has gone would wait for ever
        words = archiving.stderr.read().decode(errors="replace")
    if importing.returncode:
        raise LocalError(f"docker import {image}: {importing.stderr.strip() or importing.stdout.strip()}")
    if archiving.returncode:
        raise LocalError(f"tar of the base image's files: {words.strip()}")
