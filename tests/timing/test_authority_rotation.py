"""A whole rotation of the operator's authority under load, with certificates that live for seconds."""

import asyncio
import base64
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from splitplane.adapters.kinds import ROUTE_TABLE, SECRET
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.certificates import ASKED_ANNOTATION, AUTHORITY_SECRET, Certificates, Times
from splitplane.domain.peers import GATEWAY, ROLES, STAGE, peer_name
from splitplane.runtime.inference import InferRequest
from splitplane.runtime.tensors import from_array, to_array
from tests.support.controller_cases import pipeline_body
from tests.support.fake_cluster import FakeCluster
from tests.support.gateway_rig import (
    PIPELINE,
    SPLIT,
    MemoryCluster,
    StageProcess,
    expected,
    frames,
    gateway,
    put_all,
    table,
    until,
)
from tests.support.secret_volumes import renew, shown_to

TIMES = Times(
    lifetime=dt.timedelta(seconds=9), look=dt.timedelta(seconds=0.2), margin=dt.timedelta(seconds=0.8),
    authority=dt.timedelta(hours=1),
)  # fmt: skip


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Operator:
    """Issues certificates, and dies all the time: each round is another's first. Kubelets bring each Secret late."""

    def __init__(self, folder: Path) -> None:
        self.folders = {role: folder / role for role in ROLES}
        self.cluster = FakeCluster()
        body = pipeline_body()
        body["metadata"] |= {"name": PIPELINE, "namespace": "default"}
        self.pipeline = InferencePipeline.parse(body)

    async def round(self) -> None:
        await Certificates(self.cluster, "system", now=now, times=TIMES).ensure(self.pipeline)
        for delay, role in enumerate(ROLES):
            await asyncio.sleep(0.7 * delay)
            data = self.cluster.of("Secret")[f"{PIPELINE}-{role}-tls"]["data"]
            renew(self.folders[role], {name: base64.b64decode(content) for name, content in data.items()})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async def run() -> None:
            while True:
                await self.round()
                await asyncio.sleep(0.5)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ask_for_a_rotation(self) -> None:
        body = await self.cluster.get(SECRET, AUTHORITY_SECRET, "system")
        body["metadata"].setdefault("annotations", {})[ASKED_ANNOTATION] = now().isoformat()
        self.cluster.put(body)

    def roots(self) -> list[str]:
        text = base64.b64decode(self.cluster.of("Secret")[AUTHORITY_SECRET]["data"]["ca.crt"]).decode()
        end = "-----END CERTIFICATE-----\n"
        return [part + end for part in text.split(end) if part]


async def test_no_request_fails_through_a_whole_rotation_of_the_authority(tmp_path: Path) -> None:
    operator, cluster = Operator(tmp_path), MemoryCluster()
    await operator.round()
    (old,) = operator.roots()
    edge = StageProcess("small-edge", "edge", (0, 3), tls=operator.folders[STAGE])
    cloud = StageProcess("small-cloud", "cloud", (1, 3), tls=operator.folders[STAGE])
    put_all(cluster, edge, cloud)
    cluster.put(ROUTE_TABLE, table(1, SPLIT))
    with contextlib.closing(edge), contextlib.closing(cloud):
        async with operator.running(), gateway(cluster, tmp_path, tls_dir=operator.folders[GATEWAY]) as running:
            await until(running.forwarder.ready, seconds=60)
            served, ended = 0, asyncio.Event()
            steps = [[old]]

            async def client() -> None:
                nonlocal served
                while not ended.is_set():
                    answer = await running.forwarder.infer(InferRequest(PIPELINE, (from_array("frames", frames()),)))
                    assert to_array(answer.outputs[0]).tolist() == expected().tolist()
                    served += 1

            clients = [asyncio.create_task(client()) for _ in range(2)]
            await operator.ask_for_a_rotation()
            while len(steps) < 4:
                await asyncio.sleep(0.1)
                if (roots := operator.roots()) != steps[-1]:
                    steps.append(roots)
            await asyncio.sleep(TIMES.lifetime.total_seconds() / 3)
            ended.set()
            await asyncio.gather(*clients)
            assert served > 100
            # Announced, switched, and the old one gone.
            new = steps[-1][0]
            assert steps == [[old], [old, new], [new, old], [new]]
            # A stage shows to who trusts only the new root what that root has signed.
            shown = await asyncio.to_thread(
                shown_to, edge.address, peer_name(STAGE, PIPELINE, "default"), operator.folders[GATEWAY]
            )
            assert ssl.DER_cert_to_PEM_cert(shown)
