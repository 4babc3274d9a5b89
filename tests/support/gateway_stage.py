"""A real stage server over a small torch module, to be run in a process of its own.

The module has three segments over 16,384 numbers per sample: double, add one, sum each half. Another one returns what
it gets, which is a tensor of each datatype that torch has.
"""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import REGISTRY

from splitplane.domain.profiles import Cut, TensorSpec
from splitplane.runtime import tracing
from splitplane.runtime.stage import progress, server
from splitplane.runtime.stage.settings import Settings
from splitplane.runtime.tensors import NUMPY_TYPES

WIDTH = 16_384
POISON = -777.0
"""A sample that begins so is one on which the model raises, as an index out of range would."""
KILLER = -888.0
"""A sample that begins so, at whichever segment, ends the process, as one does that takes too much memory."""


def _cut(index: int, name: str, width: int) -> Cut:
    return Cut(index, name, (TensorSpec(name, "FP32", (width,)),), {"fp32": 4 * width}, f"schema-{index}")


@dataclass(frozen=True)
class Graph:
    cuts: tuple[Cut, ...] = (
        _cut(0, "frames", WIDTH),
        _cut(1, "doubled", WIDTH),
        _cut(2, "increased", WIDTH),
        _cut(3, "output_0", 2),
    )
    fingerprint: str = "small"


class Partition:
    graph = Graph()

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (value,) = tensors.values()
        if first == 0 and value.flatten()[0] == POISON:
            raise IndexError("index out of range in self")
        if value.flatten()[0] == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        for segment in range(first, last):
            if segment == 0:
                value = value * 2
            elif segment == 1:
                value = value + 1
            else:
                value = value.reshape(value.shape[0], 2, WIDTH // 2).mean(dim=2)
        return {self.graph.cuts[last].name: value}


TYPES = (*NUMPY_TYPES, "BF16")
"""All of the protocol but BYTES, which no tensor of torch's can hold."""


class Same:
    """Three segments that each return two numbers of every datatype as they came."""

    graph = Graph(
        tuple(
            Cut(index, f"same-{index}", tuple(TensorSpec(name.lower(), name, (2,)) for name in TYPES),
                {"fp32": 100}, f"schema-{index}")
            for index in range(4)
        )
    )  # fmt: skip

    def run(self, _first: int, _last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(tensors)


class Broken(Partition):
    """A replica that loads and says it is well, but computes nothing any more."""

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if any(value.max() > 1 for value in tensors.values()):  # what it is warmed up with is smaller
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().run(first, last, tensors)


def serve(given: Mapping[str, Any]) -> None:
    """A process's whole life."""
    torch.set_num_threads(1)
    first, last = given["resident"]
    settings = Settings(
        namespace="default",
        pipeline=given["pipeline"],
        tier=given["tier"],
        pod_name=given["name"],
        pod_ip=given["ip"],
        model="{}",
        resident_first=first,
        resident_last=last,
        fingerprint="small",
        queue_capacity=given.get("queue", 128),
        drain_pause_seconds=0.2,
        tls_dir=given.get("tls"),
    )

    def pace(*_measured: float) -> float:
        busy_until = time.perf_counter() + given.get("busy", 0.0)
        while time.perf_counter() < busy_until:
            pass  # holds the interpreter as often as it may
        time.sleep(given.get("seconds", 0.0))
        if "release" in given:
            given["release"].wait()
        return float(given.get("seconds", 0.0))

    if "stuck_after" in given:
        progress.STUCK_SECONDS = given["stuck_after"]
    if "tracing" in given:
        os.environ.update(given["tracing"])
        tracing.begin(os.environ, service="splitplane-stage", **settings.described())
    model = Same if given.get("same") else Broken if given.get("broken") else Partition
    asyncio.run(server.run(settings, model, pace, REGISTRY))
