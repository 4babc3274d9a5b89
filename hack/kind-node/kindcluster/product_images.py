"""The images of operator and runtime, built from ``images/`` as a user builds them, with the chart's version as tag."""

import functools
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from kindcluster import base_image, torch_wheel
from kindcluster.engine import Engine, UnreachableError
from splitplane.local.errors import LocalError
from splitplane.local.files import read_json, write_json

ROOT = Path(__file__).parents[3]
REPOSITORY = "splitplane-kind"
"""Test images are no releases, and are not called as those are."""
_DOCKERFILE = ROOT / "images" / "runtime" / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Images:
    """Names whose tags change with what is in the images, so that a cluster tells a new image from the one it has."""

    operator: str
    runtime: str


def build(engine: Engine, *, say: Callable[[str], None]) -> Images:
    """Build both; what has not changed comes from Docker's cache.

    ``$BASE_IMAGE``, ``$TORCH_INDEX_URL`` and pip's own variables are handed on where they are set.
    """
    version = yaml.safe_load((ROOT / "charts/splitplane/Chart.yaml").read_text())["appVersion"]
    base = _base(engine, say)
    say(f"Building the operator's image on {base}")
    operator = _build(engine, "operator", version, PYTHON_IMAGE=base)
    with _torch_index(engine, base, say) as (index, torch):
        say(f"Building the runtime's image on {base}")
        runtime = _build(engine, "runtime", f"{version}{torch}", PYTHON_IMAGE=base, TORCH_INDEX_URL=index)
    return Images(operator, runtime)


def _build(engine: Engine, name: str, version: str, **arguments: str) -> str:
    mirrors = ("PIP_INDEX_URL", "PIP_TRUSTED_HOST", "DEBIAN_MIRROR")
    arguments |= {key: os.environ[key] for key in mirrors if key in os.environ}
    image = f"{REPOSITORY}/{name}:{version}"
    engine.build(f"--file={ROOT / 'images' / name / 'Dockerfile'}", f"--tag={image}", str(ROOT), arguments=arguments)
    identity = engine.run("image", "inspect", "--format={{.Id}}", image).strip().removeprefix("sha256:")
    tagged = f"{image}-{identity[:12]}"
    engine.run("tag", image, tagged)
    engine.remove_others(f"{image}-*", tagged)
    return tagged


def _base(engine: Engine, say: Callable[[str], None]) -> str:
    wanted = os.environ.get("BASE_IMAGE")
    if wanted:
        engine.pull(wanted)
        return wanted
    published = _default("PYTHON_IMAGE")
    try:
        engine.pull(published)
    except UnreachableError as error:
        say(f"No image registry is reachable, so the base image is made here. {error}")
        return base_image.ensure(engine)
    return published


@contextmanager
def _torch_index(engine: Engine, base: str, say: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Address of an index with a torch for the CPU, and what the image's tag tells of it.

    It is the Dockerfile's own index, else one that is served here while it is needed.
    """
    wanted = os.environ.get("TORCH_INDEX_URL", _default("TORCH_INDEX_URL"))
    if "TORCH_INDEX_URL" in os.environ or _reachable(wanted):
        yield wanted, ""
        return
    say("The index with torch's CPU build is not reachable: taking a wheel for tests, made out of the CUDA build")
    lock = (ROOT / "requirements" / "runtime.lock").read_text()
    version = re.search(r"(?m)^torch==([0-9.]+)", lock)
    if version is None:
        raise LocalError("requirements/runtime.lock names no torch.")
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = engine.run("run", "--rm", base, "python", "-c", show).strip()
    with _served(torch_wheel.ensure(version[1], python)) as address:
        yield address, "-test-torch"


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - its name there

    # The same address as last time, while it is free: it is an argument of the build, and decides whether Docker's
    # cache holds.
    last = folder.parent / "port"
    handler = functools.partial(Quiet, directory=str(folder))
    with _listening(read_json(last) or 0, handler) as server:
        write_json(last, server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _listening(port: int, handler: Callable[..., SimpleHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server at ``port``, else at a free one."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/torch/", timeout=5):  # noqa: S310 - pip's own address
            return True
    except OSError:
        return False


def _default(argument: str) -> str:
    """The value of an ``ARG`` in the runtime's Dockerfile."""
    found = re.search(rf"(?m)^ARG {argument}=(.+)$", _DOCKERFILE.read_text())
    if found is None:
        raise LocalError(f"{_DOCKERFILE} has no ARG {argument}.")
    return found[1]
