"""What faults are done to: a small split pipeline that serves, a client that asks, and the hands that a cluster has."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitplane.controller import control
from tests.chaos import records
from tests.chaos.client import DEADLINE_SECONDS
from tests.chaos.records import Span
from tests.support import operator_cases as cases
from tests.support.operator_requests import FEATURES

PIPELINE = "steady"
SEGMENTS = 4
SPLIT = "edge:0-1|cloud:1-4 fp32"
"""The plan that serves before and after each fault."""
RATE = 20.0
"""Requests per second over gRPC, and as many over REST."""
INPUTS = 128
"""Different ones that requests have in turn: one half over gRPC, the other over REST."""
WINDOWS = ("prometheus.windowSeconds=20", "prometheus.demandWindowSeconds=20")
"""Settings of the chart: faults are short."""
HELD_SECONDS = 0.5
"""What is to die stands still for so long before, so that requests are inside. Shorter than what passes for a hang."""
USUAL_SECONDS = 0.1
"""A request that has been under way for so long is with what stands still: others take some ten milliseconds."""


def split(cut: int) -> cases.Json:
    return cases.fixed(("edge", 0, cut), ("cloud", cut, SEGMENTS))


WHOLE = cases.fixed(("edge", 0, SEGMENTS))


def inputs() -> tuple[Any, Any]:
    """Inputs of as many requests, [INPUTS, 3, 64], and the unsplit model's answers to them, [INPUTS, 3, 8]."""
    features = np.random.default_rng(14).standard_normal((INPUTS, *FEATURES.shape)).astype(np.float32)
    with torch.no_grad():
        return features, cases.module()(torch.from_numpy(features)).numpy()


class Site:
    """One cluster with one pipeline. ``edge`` and ``cloud`` are the replicas of its tiers."""

    cloud_node: str
    """One that has a stage."""
    cloud_nodes: str
    """That one among its like, in words."""
    edge_node: str
    """One that has a stage and a gateway."""
    next_release = "next"
    """What tells the images of another release from those that serve."""

    def __init__(self, kubectl: Path, kubeconfig: Path, folder: Path) -> None:
        self.kubeconfig, self.folder = kubeconfig, folder
        self.log = folder / "requests.jsonl"
        self.all: list[records.Record] = []
        """Every request, once the client has ended."""

        def run(*arguments: str, stdin: Any = None, timeout: float = 60) -> str:
            done = subprocess.run(
                [str(kubectl), f"--kubeconfig={kubeconfig}", *arguments],
                input=None if stdin is None else json.dumps(stdin),
                capture_output=True, text=True, check=False, timeout=timeout,
            )  # fmt: skip
            if done.returncode:
                raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
            return done.stdout

        self.ns = cases.Namespace(run, "chaos")
        self._kubectl = run

    # The pipeline.

    def begin(self) -> None:
        """From nothing to a split that serves, with two replicas of everything."""
        self._kubectl("create", "namespace", self.ns.name)
        self.ns.apply(cases.code())
        self.apply(partitioning=split(1))
        self.settled(SPLIT, edge=2, cloud=2, seconds=240)

    def apply(self, *, edge: int = 2, cloud: int = 2, least: int | None = None, **spec: Any) -> None:
        """``least``: so few replicas of each tier do, if the load allows it; else they are as many as is said."""
        model = cases.model(sha256(cases.weights()).hexdigest())
        tiers = [
            cases.tier(name, replicas={"min": count if least is None else least, "max": count})
            for name, count in (("edge", edge), ("cloud", cloud))
        ]
        body = cases.pipeline(PIPELINE, model, *tiers, **spec)
        body["spec"]["gateway"]["replicas"] = 2
        self.ns.apply(body)

    def status(self) -> cases.Json:
        return self.ns.status(PIPELINE)

    def settled(self, summary: str, *, edge: int = 2, cloud: int = 2, seconds: float = 90, every: float = 0.3) -> None:
        """Wait until this plan serves with all its replicas and what served before has gone."""
        counts = f"edge {edge}/{edge}" + (f", cloud {cloud}/{cloud}" if "cloud" in summary else "")

        def done() -> bool:
            status = self.status()
            return (
                (status.get("plan") or {}).get("summary") == summary
                and status.get("replicas") == counts
                and not status.get("drains")
            )

        cases.wait(done, seconds=seconds, every=every, what=lambda: f"{summary} with {counts}; status {self.status()}")

    def is_switching(self) -> bool:
        """Whether the operator has a switch under way, by what it has written last: pods that are prepared, routes that
        not all gateways follow yet, or pods that drain."""
        state = control.load(self.ns.get("routetable", PIPELINE))
        return state.pending is not None or state.switching_since is not None or bool(state.draining)

    def pods(self, component: str, **labels: str) -> list[cases.Json]:
        selector = ",".join([f"app.kubernetes.io/component={component}", *(f"{k}={v}" for k, v in labels.items())])
        found = self.ns.items("pods", f"--selector={selector}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def serving(self) -> set[str]:
        """Names of the pods of gateways and stages that are to stay."""
        return {pod["metadata"]["name"] for component in ("gateway", "stage") for pod in self.pods(component)}

    def gateways(self) -> list[str]:
        """Names of the gateway's pods that are ready."""
        return [pod["metadata"]["name"] for pod in self.pods("gateway") if is_serving(pod)]

    def running(self) -> Counter[str]:
        """What runs for the pipeline, leaving pods included, by kind: the same before and after a fault."""
        return Counter(pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in self.ns.items("pods"))

    def wait_gone(self, before: Counter[str], *, seconds: float = 120) -> None:
        """Wait until no more runs than before: no fault leaves a process or a pod behind."""

        def seen() -> str:
            return f"nothing left behind: {dict(self.running() - before)} more than {dict(before)}"

        cases.wait(lambda: self.running() == before, seconds=seconds, what=seen)

    # Hands: what a cluster does not have is not done to it.

    def kill(self, module: str, pod: str) -> Span:
        """SIGKILL to a pod's process, which runs ``splitplane.MODULE``: since when it was held before, and when."""
        raise NotImplementedError

    def operator_killer(self) -> Callable[[], None]:
        """SIGKILL to the operator's process, for when it is called: looked up before, it takes no time then."""
        raise NotImplementedError

    def replace_operator(self) -> None:
        """Let the operator's Deployment start another in place of one that was killed, and wait until it is ready."""
        raise NotImplementedError

    def upgrade(self, release: str) -> None:
        """Upgrade Splitplane to the images of another release; the empty one is that which serves first."""
        raise NotImplementedError

    def link(self, *, down: bool) -> None:
        """What pods of the two tiers send to each other is lost, or arrives again."""
        raise NotImplementedError

    def off(self, node: str) -> AbstractContextManager[Span]:
        """The power of a node is cut for the length of a block: since when it was held before, and when."""
        raise NotImplementedError

    def silent(self, node: str) -> AbstractContextManager[None]:
        """Nothing on a node moves for the length of a block."""
        raise NotImplementedError

    def without(self, component: str) -> AbstractContextManager[None]:
        """A part of the control plane is gone for the length of a block: connections to it are refused."""
        raise NotImplementedError

    def way_in(self) -> tuple[str, ...]:
        """Arguments of the client that tell how it finds the gateways; none: by their pods' addresses."""
        return ()

    # The client.

    @contextmanager
    def client(self) -> Iterator[None]:
        data = self.folder / "data.npz"
        features, expected = inputs()
        np.savez(data, features=features, expected=expected)
        command = [sys.executable, "-m", "tests.chaos.client", f"--namespace={self.ns.name}", f"--pipeline={PIPELINE}",
                   f"--data={data}", f"--log={self.log}", f"--rate={RATE}", *self.way_in()]  # fmt: skip
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        try:
            self.wait_answers(1, seconds=60)
            yield
        finally:
            try:
                process.communicate(timeout=40)
            finally:
                process.kill()
                self.all = records.read(self.log)

    def wait_answers(self, count: int, *, seconds: float) -> None:
        def answers() -> int:
            return sum(record.ok for record in records.read(self.log))

        before = answers()
        cases.wait(lambda: answers() >= before + count, seconds=seconds, what=f"{count} answers")

    def between(self, start: float, end: float) -> list[records.Record]:
        return [record for record in records.read(self.log) if start <= record.sent < end]

    def ended(self, start: float, end: float) -> list[records.Record]:
        """The requests that were sent between these times, once each has ended: with an answer or without one."""
        cases.wait(
            lambda: all(record.ended for record in self.between(start, end)),
            seconds=2 * DEADLINE_SECONDS,
            what=lambda: f"the end of {sum(not record.ended for record in self.between(start, end))} requests",
        )
        return self.between(start, end)

    def inside(self, held: Span) -> list[records.Record]:
        """The requests that were inside what was held, and died then. Fails where there were none."""
        began, died = held
        found = [record for record in self.ended(began, died - USUAL_SECONDS) if record.sent + record.seconds > died]
        assert found, "no request was inside what died"
        return found

    def wait_calm(self, *, seconds: float = 120) -> None:
        """Wait until three seconds' requests have been answered undisturbed, and over the cloud.

        A gateway that still goes round what the last fault did to the cloud would not notice the next one.
        """

        def last() -> list[records.Record]:
            now = time.time()
            return self.between(now - 4.0, now - 1.0)

        def calm() -> bool:
            found = last()
            return len(found) > 2.5 * 2 * RATE and all(
                record.plan == SPLIT and not record.disturbed for record in found
            )

        def seen() -> str:
            plans, slowest = {record.plan for record in last()}, max((record.seconds for record in last()), default=0.0)
            return f"calm over {SPLIT}; last over {sorted(plans)}, in {slowest:.2f} s or less"

        cases.wait(calm, seconds=seconds, what=seen)


def is_serving(pod: cases.Json) -> bool:
    """Whether a pod is ready, and to stay."""
    conditions = pod.get("status", {}).get("conditions", ())
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )
