"""The chart as one file for `kubectl apply`, judged by the API server itself.

It knows the schemas of its own version and refuses unknown and duplicate fields, which is what validators of files do
with copies of these schemas.
"""

import subprocess
from collections.abc import Callable

import pytest

from splitplane.local import binaries, install

pytestmark = pytest.mark.integration


def test_the_api_server_takes_every_object_of_the_rendered_chart_and_warns_of_nothing(
    kubectl: Callable[..., str],
) -> None:
    rendered = subprocess.run(
        [str(binaries.ensure("helm")), "template", "release", str(install.find_chart()), "--namespace=default",
         "--set=prometheus.url=http://prometheus.example:9090"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    said = kubectl(
        "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "--filename=-", stdin=rendered
    )
    assert len(said.splitlines()) == rendered.count("\nkind: ")
