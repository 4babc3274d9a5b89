"""A model in two halves behind Splitplane, and in chains of others' servers, beside the model in one piece.

Every server does the same work, compiled alike, on one thread: MiniLM's first and second three layers for a sentence
of 128 tokens, or nothing at all on an activation of 200 kB, which leaves what serving costs. All servers of one
contender have one core to themselves and the client has another, so that no split gains by a second core: what is
lost to the model in one piece (a stage of Splitplane with tritonclient before it) is what the chain costs.

    make bench-peers
    python -m benchmarks.peers stage MODEL FIRST LAST WEIGHTS DIGEST ADDRESS      # one server of ours
    python -m benchmarks.peers gateway MODEL FRONT BACK
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import torch
import tritonclient.grpc.aio as triton
from safetensors.torch import save as write

from benchmarks._report import FOLDER, Row, row
from benchmarks._report import write as report
from benchmarks.hop import free_port
from benchmarks.peer_models import HALF, LAST, MODELS, Range, example, load
from splitplane.adapters.kinds import POD, ROUTE_TABLE
from splitplane.freed_memory import MESSAGES_BYTES, keep_freed
from splitplane.runtime.stage import server
from splitplane.runtime.stage.serving import declared
from splitplane.runtime.stage.settings import Settings
from tests.support import gateway_rig as rig

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers" / "bin" / "python"
CONCURRENCY = (1, 8)
ROUNDS, SECONDS = 5, 1.0
START_SECONDS = 240.0
LOG = FOLDER / "peers.log"
"""What servers say; read it when one doesn't come up."""
UNSPLIT, OURS = "in one piece", "Splitplane"
CHAINS = ("FastAPI", "KServe", "Ray Serve")
DATATYPES = {"float32": "FP32", "int64": "INT64"}

Send = Callable[[], Awaitable[object]]


# Servers of ours, each a process.


def serve_stage(model: str, first: int, last: int, weights: Path, digest: str, address: str) -> None:
    from prometheus_client import REGISTRY

    settings = Settings("default", rig.PIPELINE, "edge", "stage", address, "", first, last, "", drain_pause_seconds=0.0)

    def work() -> Range:
        return load(model, first, last, weights, digest)

    asyncio.run(server.run(settings, work, lambda _core, _wall: 0.0, REGISTRY))
    os._exit(0)


def serve_gateway(model: str, front: str, back: str, weights: Path, digest: str) -> None:
    """Prints its address once it can serve."""
    half, last = HALF[model], LAST[model]
    cuts = load(model, 0, 1, weights, digest).graph.cuts
    described = {
        kind: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in declared(cut)]
        for kind, cut in (("inputs", cuts[0]), ("outputs", cuts[last]))
    }

    async def run() -> None:
        cluster = rig.MemoryCluster()
        for name, address in (("front", front), ("back", back)):
            cluster.put(POD, rig.pod_object(name, name, address))
        route = rig.route(("front", "edge", 0, half), ("back", "edge", half, last))
        table = rig.table(1, route, stages=["front", "back"], model={"name": rig.PIPELINE, **described})
        cluster.put(ROUTE_TABLE, table)
        with tempfile.TemporaryDirectory() as state:
            async with rig.gateway(cluster, Path(state)) as running:
                await rig.until(running.forwarder.ready, seconds=START_SECONDS)
                sys.stdout.write(f"{running.settings.pod_ip}:9000\n")
                sys.stdout.flush()
                await asyncio.Event().wait()

    asyncio.run(run())


# Starting and ending them.


@dataclass(slots=True)
class Contender:
    """``pids`` are its servers', whose children count too."""

    name: str
    address: str
    pids: list[int]
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """By concurrency, the median of a request in each round; so with the next two."""
    cpu: dict[int, list[float]] = field(default_factory=dict)
    rates: dict[int, list[float]] = field(default_factory=dict)


class Starter:
    """Starts processes and ends them with the block, each by its pid."""

    def __init__(self, stack: ExitStack, model: str, weights: Path, digest: str) -> None:
        self._stack, self._model = stack, model
        self._weights = (str(weights), digest)
        self._folder = weights.parent

    def ours(self, kind: str, *arguments: str) -> "subprocess.Popen[str]":
        return self._start([sys.executable, "-m", "benchmarks.peers", kind, self._model, *arguments])

    def stage(self, first: int, last: int) -> tuple[int, str]:
        address = rig.free_address()
        started = self.ours("stage", str(first), str(last), *self._weights, address)
        return started.pid, address

    def gateway(self, front: str, back: str) -> tuple[int, str]:
        started = self.ours("gateway", front, back, *self._weights)
        assert started.stdout is not None
        return started.pid, started.stdout.readline().strip()

    def peer(self, kind: str, *arguments: str) -> int:
        command = [str(PEERS), "-m", "benchmarks.peer_servers", kind, self._model, *arguments]
        return self._start(command).pid

    def part(self, kind: str, first: int, last: int, following: str = "") -> tuple[int, str]:
        port = free_port()
        more = [following] if following else []
        return self.peer(kind, str(first), str(last), *self._weights, str(port), *more), f"127.0.0.1:{port}"

    def chain(self, kind: str) -> tuple[list[int], str]:
        half, last = HALF[self._model], LAST[self._model]
        if kind == "ray":
            port = free_port()
            return [self.peer("ray", *self._weights, str(port))], f"127.0.0.1:{port}"
        back, address = self.part(kind, half, last)
        front, entry = self.part(kind, 0, half, address)
        return [front, back], entry

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}:{MODELS}",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(self._folder),
        }  # fmt: skip
        LOG.parent.mkdir(parents=True, exist_ok=True)
        with LOG.open("a") as log:
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=log, text=True)  # fmt: skip
        self._stack.callback(_end, process)
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    """Ray ends what it started when its input ends; what anybody leaves behind is ended here."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    if family:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=10)
    process.kill()
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()


@contextmanager
def contenders(model: str, weights: Path, digest: str) -> Iterator[list[Contender]]:
    half, last = HALF[model], LAST[model]
    with ExitStack() as stack:
        start = Starter(stack, model, weights, digest)
        whole, address = start.stage(0, last)
        found = [Contender(UNSPLIT, f"{address}:9000", [whole])]
        peers = {name: start.chain(kind) for name, kind in zip(CHAINS, ("fastapi", "kserve", "ray"), strict=True)}
        (front, entry), (back, exit_) = start.stage(0, half), start.stage(half, last)
        gateway, address = start.gateway(entry, exit_)
        found.append(Contender(OURS, address, [gateway, front, back]))
        yield [*found, *(Contender(name, address, pids) for name, (pids, address) in peers.items())]


# Asking them.


async def sender(contender: Contender, model: str, stack: AsyncExitStack) -> Send:
    """A client as each one's documentation has it, with its request made ready."""
    arrays = example(model)
    if contender.name in ("FastAPI", "Ray Serve"):
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        body, url = write({n: torch.from_numpy(a) for n, a in arrays.items()}), f"http://{contender.address}/infer"

        async def post() -> None:
            async with session.post(url, data=body) as answer:
                answer.raise_for_status()
                await answer.read()

        return post
    client = triton.InferenceServerClient(contender.address)
    stack.push_async_callback(client.close)
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    name = "encoder" if contender.name == "KServe" else rig.PIPELINE
    return lambda: client.infer(name, inputs)


async def until_it_answers(send: Send) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            with suppress(Exception):  # each client has its own, for a server that is not up yet
                await send()
                return
            await asyncio.sleep(0.2)


async def measure(model: str, all_of_them: list[Contender], own: int, core: int) -> None:
    """The client is on one core and the servers, once they are up, on another. A chain that stays down is left out."""
    async with AsyncExitStack() as stack:
        sends = {each.name: await sender(each, model, stack) for each in all_of_them}
        for contender in list(all_of_them):
            try:
                await until_it_answers(sends[contender.name])
            except TimeoutError:
                if contender.name not in CHAINS:
                    raise
                sys.stderr.write(f"{contender.name} does not come up and is left out; {LOG} says why\n")
                all_of_them.remove(contender)
            else:
                confine(contender.pids, core)
        confine([os.getpid()], own)
        for turn in range(ROUNDS + 1):
            for concurrency in CONCURRENCY:
                for position in range(len(all_of_them)):
                    contender = all_of_them[(position + turn) % len(all_of_them)]
                    await _round(contender, sends[contender.name], concurrency, count=turn > 0)


async def _round(contender: Contender, send: Send, concurrency: int, *, count: bool) -> None:
    seconds: list[float] = []
    family = _family(contender.pids)
    before, started = _cpu(family), time.perf_counter()
    end = started + (SECONDS if count else SECONDS / 2)

    async def client() -> None:
        while (began := time.perf_counter()) < end:
            await send()
            seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    elapsed = time.perf_counter() - started
    if count:
        contender.seconds.setdefault(concurrency, []).append(statistics.median(seconds))
        contender.rates.setdefault(concurrency, []).append(len(seconds) / elapsed)
        contender.cpu.setdefault(concurrency, []).append((_cpu(family) - before) / len(seconds))


def confine(pids: Sequence[int], core: int) -> None:
    """Processes, their children and all their threads, to one core; so will be what they start."""
    for process in _family(pids):
        with suppress(OSError):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})


def _family(pids: Sequence[int]) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in pids]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]


def _cpu(family: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


# Telling.


def rows(model: str, measured: Sequence[Contender]) -> list[Row]:
    """Overheads are what a chain takes more than the model in one piece; the baseline is the best other chain's."""
    whole, ours, *chains = measured
    found: list[Row] = []
    for concurrency in CONCURRENCY:
        where = f"{model}, {concurrency} at a time"
        for title, of, unit, scale in (("p50", "seconds", "ms", 1e3), ("CPU per request", "cpu", "ms", 1e3)):
            middle = {each.name: statistics.median(getattr(each, of)[concurrency]) * scale for each in measured}
            found += [row(f"{title}, {where}: {name}", value, unit) for name, value in middle.items()]
            best = min(middle[each.name] for each in chains) - middle[whole.name]
            found.append(row(f"{title} over the whole model, {where}", middle[OURS] - middle[whole.name], unit, best))
        rate = {each.name: statistics.median(each.rates[concurrency]) for each in measured}
        found += [row(f"throughput, {where}: {name}", value, "1/s") for name, value in rate.items()]
        found.append(row(f"throughput against the whole model, {where}", rate[OURS], "1/s", rate[UNSPLIT]))
        best = max(rate[each.name] for each in chains)
        found.append(row(f"throughput against the best other chain, {where}", rate[ours.name], "1/s", best))
    return found


def main() -> list[Row]:
    if not PEERS.exists():
        raise SystemExit("the others' environment is missing: run `make bench-peers`, or `make peers` before this")
    sys.path.insert(0, str(MODELS))
    import sentence_encoder  # type: ignore[import-not-found]

    cores, found = sorted(os.sched_getaffinity(0)), []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        digest = sentence_encoder.save(weights)
        for model in HALF:
            with contenders(model, weights, digest) as started:
                asyncio.run(measure(model, started, cores[0], cores[-1]))
            found += rows(model, started)
            os.sched_setaffinity(0, cores)
    return found


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stage", model, first, last, weights, digest, address]:
            keep_freed(MESSAGES_BYTES)
            serve_stage(model, int(first), int(last), Path(weights), digest, address)
        case ["gateway", model, front, back, weights, digest]:
            keep_freed(MESSAGES_BYTES)
            serve_gateway(model, front, back, Path(weights), digest)
        case _:
            report("bench-peers", main())
