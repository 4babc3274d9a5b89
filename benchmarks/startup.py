"""From a process' start to ready, and what of it are imports: operator, gateway, and a stage of MiniLM.

The commands and variables are those of their pods. API server and node-less cluster are real; the gateway finds a stage
that serves already. Measured from outside, by the path that the readiness probe asks; CPU seconds are told too, as a
machine with other work stretches the rest.

    python -m benchmarks.startup [operator gateway stage] [--rounds 5] [--python /path/to/another/environment's/python]
    python -m benchmarks.startup --operator-image IMAGE --runtime-image IMAGE      # the same in containers
"""

import argparse
import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks._report import Row, row, write
from splitplane.local import binaries
from splitplane.local.cluster import Cluster
from splitplane.local.config import ClusterConfig
from splitplane.model import ModelSource, export
from splitplane.runtime import oip_wire
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.oip_grpc import MODEL_INFER
from splitplane.runtime.tensors import from_array

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "models"
PROGRAMS = {
    "operator": "splitplane.controller",
    "gateway": "splitplane.runtime.gateway",
    "stage": "splitplane.runtime.stage",
}
NETWORK = f"127.254.{os.getpid() % 250}"  # far from those of embedded clusters
ADDRESSES = {"operator": f"{NETWORK}.1", "gateway": f"{NETWORK}.2", "stage": f"{NETWORK}.3"}
READY = {"operator": "/healthz", "gateway": "/v2/health/ready", "stage": "/v2/health/ready"}
TOKENS, LATER_REQUESTS = 128, 20
PATIENCE_SECONDS, LOOK_SECONDS = 300.0, 0.01


@dataclass(frozen=True)
class Place:
    """Where the programs run: with a Python of this machine, or in containers of images."""

    python: str
    images: dict[str, str]

    def command(
        self, program: str, environment: dict[str, str], arguments: list[str]
    ) -> tuple[list[str], dict[str, str], str]:
        """The command, its environment, and the name of its container, empty for a process."""
        image = self.images.get("runtime" if program == "stage" else "operator")
        if image is None:
            return [self.python, *arguments], environment, ""
        name = f"splitplane-startup-{uuid.uuid4().hex[:8]}"
        given = [f"--env={key}={value}" for key, value in environment.items() if key != "PATH"]  # the image has its own
        mounts = [f"--volume={folder}:{folder}:ro" for folder in (MODELS, Path(environment["FILES"]))]
        docker = ["docker", "run", "--rm", f"--name={name}", "--network=host", "--read-only", "--tmpfs=/tmp"]
        user = ["--user=0:0"]  # of the files that it reads here; a pod's are readable to its user
        return [*docker, *user, *given, *mounts, image, "python", *arguments], dict(os.environ), name


@dataclass(frozen=True)
class Started:
    """One start: seconds until it was ready, CPU seconds until then (0 for a container), and what it said."""

    seconds: float
    cpu: float
    log: str


@contextlib.contextmanager
def running(place: Place, program: str, environment: dict[str, str]) -> Iterator[Started]:
    """Start a program and wait until it is ready; it ends with the context."""
    command, variables, container = place.command(program, environment, ["-m", PROGRAMS[program]])
    with tempfile.TemporaryFile("w+") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            _until_ready(f"http://{ADDRESSES[program]}:8080{READY[program]}", process)
            seconds, cpu = time.perf_counter() - begun, 0.0 if container else _cpu(process.pid)
            log.seek(0)
            yield Started(seconds, cpu, log.read())
        except TimeoutError:
            log.seek(0)
            raise RuntimeError(f"{program} does not become ready: {log.read()[-2000:]}") from None
        finally:
            if container:
                subprocess.run(["docker", "kill", container], capture_output=True, check=False)
            process.kill()
            process.wait()


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while time.perf_counter() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(LOOK_SECONDS)
    raise TimeoutError


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def imports(place: Place, program: str, environment: dict[str, str]) -> tuple[float, dict[str, float]]:
    """CPU seconds that its imports take, with the interpreter's own start, and seconds by package as Python counts.

    The first are 0 for a container, whose CPU is not this process' children's.
    """
    module = f"{PROGRAMS[program]}.__main__"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command, variables, container = place.command(program, environment, ["-c", f"import {module}"])
    subprocess.run(command, env=variables, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    command, variables, _ = place.command(program, environment, ["-X", "importtime", "-c", f"import {module}"])
    said = subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stderr
    packages: dict[str, float] = {}
    for microseconds, name in re.findall(r"import time: +(\d+) \|[ \d]+\| +([\w]+)", said):
        packages[name] = packages.get(name, 0.0) + int(microseconds) / 1e6
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 0.0 if container else cpu, packages


def requests(address: str, name: str) -> tuple[float, float]:
    """Milliseconds of a stage's first request, and the median of those after it."""
    tensors = tuple(from_array(key, np.ones((1, TOKENS), np.int64)) for key in ("input_ids", "attention_mask"))
    message = oip_wire.write_request(InferRequest(name, tensors))
    taken = []
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(MODEL_INFER)
        live: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        live(b"")  # the connection is no part of it
        for _ in range(1 + LATER_REQUESTS):
            begun = time.perf_counter()
            method(message, timeout=30)
            taken.append(1000 * (time.perf_counter() - begun))
    return taken[0], statistics.median(taken[1:])


@contextlib.contextmanager
def site(files: Path, python_path: str) -> Iterator[dict[str, dict[str, str]]]:
    """A cluster that knows a pipeline of one stage; the variables of each program."""
    sys.path.insert(0, str(MODELS))
    import sentence_encoder  # type: ignore[import-not-found]

    weights = files / "minilm.safetensors"
    inputs = [{"name": n, "datatype": "INT64", "shape": [-1, TOKENS]} for n in ("input_ids", "attention_mask")]
    source = {"name": "encoder", "factory": "sentence_encoder:build", "inputs": inputs,
              "weights": {"uri": weights.as_uri(), "sha256": sentence_encoder.save(weights)}}  # fmt: skip
    graph = export(ModelSource.from_json(json.dumps(source)))
    cluster = Cluster.of(f"startup-{os.getpid()}")
    try:
        cluster.up(ClusterConfig(nodes=()))
        kubeconfig = files / "kubeconfig"
        kubeconfig.write_bytes(cluster.paths.kubeconfig.read_bytes())
        kubectl = [str(binaries.ensure("kubectl")), f"--kubeconfig={kubeconfig}"]

        def apply(*objects: dict[str, Any], more: tuple[str, ...] = ()) -> None:
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
            command = [*kubectl, "apply", "--server-side", "--force-conflicts", "--filename=-", *more]
            subprocess.run(command, input=text, text=True, check=True, capture_output=True)

        subprocess.run([*kubectl, "apply", "--server-side", f"--filename={ROOT / 'crds'}"], check=True,
                       capture_output=True)  # fmt: skip
        subprocess.run([*kubectl, "wait", "--for=condition=Established", "crd", "--all"], check=True,
                       capture_output=True)  # fmt: skip
        last = len(graph.segments)
        outputs = [{"name": t.name, "datatype": t.datatype, "shape": [-1, *t.shape]} for t in graph.outputs]
        apply(*_objects(inputs, outputs, last))
        apply(_pod(ready=True), more=("--subresource=status",))
        pod = {"PATH": os.environ["PATH"], "HOME": "/tmp", "OMP_NUM_THREADS": "1", "KUBECONFIG": str(kubeconfig),
               "FILES": str(files), "PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1",
               "SPLITPLANE_NAMESPACE": "default"}  # fmt: skip
        mine = {"SPLITPLANE_PIPELINE": "encoder", "SPLITPLANE_TIER": "edge"}
        yield {
            "operator": {**pod, "SPLITPLANE_POD_IP": ADDRESSES["operator"], "SPLITPLANE_OPERATOR_IMAGE": "o:1",
                         "SPLITPLANE_RUNTIME_IMAGE": "r:1", "SPLITPLANE_PROMETHEUS_URL": "http://127.0.0.1:9"},
            "gateway": {**pod, **mine, "SPLITPLANE_POD_NAME": "gateway", "SPLITPLANE_POD_IP": ADDRESSES["gateway"],
                        "SPLITPLANE_ROUTE_TABLE": "encoder", "SPLITPLANE_STATE_DIR": "/tmp"},
            "stage": {**pod, **mine, "SPLITPLANE_POD_NAME": "stage", "SPLITPLANE_POD_IP": ADDRESSES["stage"],
                      "SPLITPLANE_MODEL": json.dumps(source), "SPLITPLANE_RESIDENT": f"0:{last}",
                      "SPLITPLANE_FINGERPRINT": graph.fingerprint},
        }  # fmt: skip
    finally:
        cluster.down(purge=True)


def _objects(inputs: list[Any], outputs: list[Any], last: int) -> list[dict[str, Any]]:
    stages = [{"stage": "encoder-edge", "tier": "edge", "first": 0, "last": last}]
    spec = {"generation": 1, "model": {"name": "encoder", "inputs": inputs, "outputs": outputs},
            "routes": [{"name": f"edge:0-{last}", "stages": stages, "codecs": [], "maxRatePerSecond": "100"}],
            "stages": ["encoder-edge"]}  # fmt: skip
    table = {"apiVersion": "splitplane.dev/v1alpha1", "kind": "RouteTable", "metadata": {"name": "encoder"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    return [account, {**table, "spec": spec}, _pod(ready=False)]


def _pod(*, ready: bool) -> dict[str, Any]:
    labels = {"splitplane.dev/pipeline": "encoder", "splitplane.dev/stage": "encoder-edge",
              "app.kubernetes.io/component": "stage"}  # fmt: skip
    pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stage", "labels": labels}}
    if ready:
        ip = ADDRESSES["stage"]
        condition = {"type": "Ready", "status": "True"}
        return {**pod, "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]}}
    return {**pod, "spec": {"containers": [{"name": "stage", "image": "r:1"}]}}


def measure(place: Place, programs: list[str], rounds: int) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="splitplane-startup-") as folder:
        python_path = str(MODELS)
        with site(Path(folder), python_path) as variables:
            for program in programs:
                found, first, later = [], 0.0, 0.0
                with contextlib.ExitStack() as stack:
                    if program == "gateway":
                        stack.enter_context(running(place, "stage", variables["stage"]))
                    for _ in range(rounds):
                        with running(place, program, variables[program]) as started:
                            found.append(started)
                            if program == "stage":
                                first, later = requests(f"{ADDRESSES['stage']}:9000", "encoder")
                cpu, packages = imports(place, program, variables[program])
                rows += _rows(program, found, cpu, packages)
                if program == "stage":
                    rows.append(row("startup: stage, first request against later ones", first, "ms", later))
    return rows


def _rows(program: str, found: list[Started], cpu: float, packages: dict[str, float]) -> list[Row]:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    rows = [row(f"startup: {program}, until ready", median([each.seconds for each in found]), "s")]
    if cpu:
        rows.append(row(f"startup: {program}, CPU until ready", median([each.cpu for each in found]), "s"))
        rows.append(row(f"startup: {program}, CPU of its imports", cpu, "s"))
    rows.append(row(f"startup: {program}, imports", sum(packages.values()), "s"))
    for what in ("built, cut and read", "first runs"):
        told = [float(text) for each in found for text in re.findall(rf"{what} in ([\d.]+) s", each.log)]
        if told:
            rows.append(row(f"startup: {program}, {what}", median(told), "s"))
    largest = sorted(packages.items(), key=lambda item: -item[1])
    rows += [row(f"startup: {program}, import of {name}", took, "s") for name, took in largest[:6]]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", choices=[*PROGRAMS, []], help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--operator-image")
    parser.add_argument("--runtime-image")
    given = parser.parse_args()
    images = {"operator": given.operator_image, "runtime": given.runtime_image}
    place = Place(given.python, {name: image for name, image in images.items() if image})
    write("startup", measure(place, given.programs or list(PROGRAMS), given.rounds))


if __name__ == "__main__":
    main()
