"""What the operator's tests share: a small model in a ConfigMap, pipelines that serve it, and ways to wait."""

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import nn

Json = dict[str, Any]
T = TypeVar("T")

FACTORY = '''
import torch
from torch import nn


class Narrowing(nn.Module):
    """Layers of falling width, so that a later cut sends less."""

    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, features):
        for layer in self.layers:
            features = torch.tanh(layer(features))
        return features


def build():
    return Narrowing(64, 256, 128, 32, 8)


def build_wide():
    return Narrowing(64, 512, 128, 32, 8)
'''


def module(wide: bool = False) -> nn.Module:
    """The same model here, to make weights from and to compare answers with."""
    names: dict[str, Any] = {}
    exec(compile(FACTORY, "narrowing.py", "exec"), names)
    torch.manual_seed(0)
    built: nn.Module = (names["build_wide"] if wide else names["build"])()
    return built.eval()


def weights(wide: bool = False) -> bytes:
    return save(module(wide).state_dict())


def code(name: str = "narrowing") -> Json:
    """ConfigMap with the factory and the weights of both variants."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"narrowing.py": FACTORY},
        "binaryData": {
            "narrow.safetensors": base64.b64encode(weights()).decode(),
            "wide.safetensors": base64.b64encode(weights(wide=True)).decode(),
        },
    }


def tier(name: str, **more: Any) -> Json:
    return {
        "name": name,
        "nodeSelector": {"splitplane.dev/tier": name},
        "tolerations": [{"key": "splitplane.dev/tier", "operator": "Exists", "effect": "NoSchedule"}],
        "deviceClass": "small",  # one for both tiers: they share one measurement
        "trusted": name == "edge",
        "replicas": {"min": 0, "max": 2},
        "resources": {"requests": {"cpu": "200m", "memory": "128Mi"}},
        "pricePerHour": "0.05" if name == "edge" else "0.30",
        **more,
    }


def model(sha256: str, *, factory: str = "narrowing:build", file: str = "narrow.safetensors") -> Json:
    return {
        "factory": factory,
        "weights": {"uri": f"file:///models/{file}", "sha256": sha256},
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 64]}],
        "env": [{"name": "PYTHONPATH", "value": "/models"}],
        "volumes": [{"name": "models", "configMap": {"name": "narrowing"}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }


def pipeline(name: str, model: Json, *tiers: Json, **spec: Any) -> Json:
    return {
        "apiVersion": "splitplane.dev/v1alpha1",
        "kind": "InferencePipeline",
        "metadata": {"name": name},
        "spec": {
            "model": model,
            "tiers": list(tiers or (tier("edge"), tier("cloud"))),
            "gateway": {"tier": (tiers or (tier("edge"),))[0]["name"]},
            "replanning": {"intervalSeconds": 5, "cooldownSeconds": 5, "scaleDownWindowSeconds": 5},
            **spec,
        },
    }


def fixed(*stages: tuple[str, int, int]) -> Json:
    """``spec.partitioning`` of a split that the user dictates: (tier, first cut, last cut) of each stage."""
    return {
        "mode": "Fixed",
        "fixed": {
            "stages": [{"tier": tier, "firstCut": first, "lastCut": last} for tier, first, last in stages],
            "codecs": ["fp32"] * (len(stages) - 1),
        },
    }


class Namespace:
    """kubectl in one namespace, in the words of these tests."""

    def __init__(self, kubectl: Callable[..., str], name: str) -> None:
        self._kubectl = kubectl
        self.name = name

    @classmethod
    @contextmanager
    def fresh(cls, kubectl: Callable[..., str], *bodies: Json) -> Iterator["Namespace"]:
        """A namespace with the model's code and weights, and ``bodies``. Its deletion is not awaited."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        kubectl("create", "namespace", name)
        try:
            found = cls(kubectl, name)
            for body in (code(), *bodies):
                found.apply(body)
            yield found
        finally:
            kubectl("delete", "namespace", name, "--wait=false")

    def __call__(self, *arguments: str, **options: Any) -> str:
        return self._kubectl("-n", self.name, *arguments, **options)

    def apply(self, body: Json) -> None:
        self("apply", "--server-side", "-f", "-", stdin=body)

    def get(self, *arguments: str) -> Json:
        found: Json = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def items(self, *arguments: str) -> list[Json]:
        found: list[Json] = self.get(*arguments)["items"]
        return found

    def status(self, name: str) -> Json:
        found: Json = self.get("ipipe", name).get("status") or {}
        return found

    def condition(self, name: str, kind: str) -> Json:
        conditions = self.status(name).get("conditions", ())
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def events(self, name: str) -> list[Json]:
        """The operator's events about a pipeline, oldest first."""
        selector = f"involvedObject.kind=InferencePipeline,involvedObject.name={name}"
        return self.items("events", "--field-selector", selector)

    def wait_condition(self, name: str, kind: str, status: str, reason: str = "", *, seconds: float = 180) -> Json:
        def met() -> Json | None:
            found = self.condition(name, kind)
            fits = found.get("status") == status and (not reason or found.get("reason") == reason)
            return found if fits else None

        return wait(
            met,
            seconds=seconds,
            what=lambda: f"{kind}={status} {reason}; conditions {self.status(name).get('conditions')}",
        )

    def gateway(self, name: str) -> str:
        """gRPC address of the pipeline's gateway."""
        selector = f"splitplane.dev/pipeline={name},app.kubernetes.io/component=gateway"
        pods = [pod for pod in self.items("pods", "-l", selector) if "deletionTimestamp" not in pod["metadata"]]
        return f"{pods[0]['status']['podIP']}:9000"


@dataclass(frozen=True)
class Measured:
    """A pipeline that was measured, planned and served without anything being prepared for it."""

    ns: Namespace
    name: str
    profile: Json

    @property
    def copy(self) -> Json:
        """The profile as it may be applied elsewhere: pipelines of the same model start there without profile jobs."""
        metadata = {key: self.profile["metadata"][key] for key in ("name", "labels")}
        return {**self.profile, "metadata": metadata}


def wait(probe: Callable[[], T | None], *, seconds: float, what: Callable[[], str] | str, every: float = 0.5) -> T:
    """The first truthy answer of ``probe``; fails with ``what`` was waited for when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what() if callable(what) else what}")
        time.sleep(every)


@contextmanager
def running(process: Any) -> Iterator[Any]:
    """A child process that ends with the block."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
