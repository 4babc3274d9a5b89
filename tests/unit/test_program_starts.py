"""What programs do not import, since it would only keep their pods from being ready."""

import json
import subprocess
import sys

import pytest

OPTIONAL = ("kubernetes.config", "kubernetes.stream", "cryptography.x509", "opentelemetry.sdk", "torch")
LEFT_OUT = {
    "splitplane.controller.__main__": OPTIONAL,
    "splitplane.runtime.gateway.__main__": (*OPTIONAL, "kubernetes.client", "requests"),
    "splitplane.runtime.link_target": (*OPTIONAL, "kubernetes", "numpy", "aiohttp", "pydantic"),
}


def after(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("program", LEFT_OUT)
def test_a_program_starts_without_what_it_may_never_need(program: str) -> None:
    loaded = set(json.loads(after(f"import json, sys, {program}; print(json.dumps(list(sys.modules)))")))
    assert program in loaded
    assert loaded.isdisjoint(LEFT_OUT[program])


def test_the_clients_synchronous_half_is_imported_when_somebody_asks_for_it() -> None:
    code = """
import splitplane.adapters, sys
import kubernetes
assert "kubernetes.config" not in sys.modules
print(kubernetes.config.load_kube_config.__name__, kubernetes.__version__.count("."), hasattr(kubernetes, "nothing"))
from kubernetes import client, watch
print(client.CoreV1Api.__name__, watch.Watch.__name__)
"""
    assert after(code).split() == ["load_kube_config", "2", "False", "CoreV1Api", "Watch"]


def test_nothing_is_collected_while_a_program_imports_and_all_is_as_before_afterwards() -> None:
    code = """
import gc
from splitplane.starting import importing
try:
    with importing():
        during = gc.isenabled()
        raise ImportError
except ImportError:
    print(during, gc.isenabled(), gc.get_freeze_count() > 0)
"""
    assert after(code).split() == ["False", "True", "True"]
