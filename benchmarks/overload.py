"""What a gateway serves in time at up to three times the capacity behind it.

One stage takes 20 ms for a request, so it can serve 50 a second. Each request has one second, which it says itself, or
else the route table; what is answered within it counts. The gateway and the client share a process, the stage has one
of its own.

    python -m benchmarks.overload
"""

import asyncio
import tempfile
from pathlib import Path

from benchmarks._report import Row, row, write
from splitplane.adapters.kinds import POD, ROUTE_TABLE
from tests.support import gateway_rig as rig
from tests.support.constant_rate import Client

STAGE_SECONDS, DEADLINE_SECONDS = 0.02, 1.0
RATES = (40.0, 50.0, 75.0, 150.0)
SECONDS = 8.0


async def measure(*, tells: bool) -> dict[float, float]:
    """Requests per second that were answered in time, by requests per second that were sent.

    ``tells``: requests carry their deadlines, else the table's time is theirs.
    """
    milliseconds = int(1000 * DEADLINE_SECONDS) * (20 if tells else 1)
    deadline = DEADLINE_SECONDS * (1.0 if tells else 1.5)  # who gives none takes what was in time for the gateway
    stage, cluster = rig.StageProcess("small-slow", "edge", (0, 3), seconds=STAGE_SECONDS), rig.MemoryCluster()
    good: dict[float, float] = {}
    with rig.stages(stage), tempfile.TemporaryDirectory() as state:
        cluster.put(POD, stage.pod)
        route = rig.route(("small-slow", "edge", 0, 3))
        queue = {"maxInFlight": 512, "timeoutMilliseconds": milliseconds}
        cluster.put(ROUTE_TABLE, rig.table(1, route, stages=["small-slow"], queue=queue))
        async with rig.gateway(cluster, Path(state)) as running:
            await rig.until(running.forwarder.ready)
            url = f"http://{running.settings.pod_ip}:8080/v2/models/{rig.PIPELINE}/infer"
            for rate in RATES:
                client = Client(url, "127.0.0.2", deadline=deadline, width=rig.WIDTH, tells=tells)
                await client.run(rate, SECONDS)
                good[rate] = client.good / SECONDS
    return good


def main() -> list[Row]:
    """Goodput at each rate, against the highest of all, with and without deadlines that clients give."""
    rows: list[Row] = []
    for tells, whose in ((True, ""), (False, ", no deadlines given")):
        good = asyncio.run(measure(tells=tells))
        peak = max(good.values())
        rows += [
            row(f"served in time of {rate:.0f} requests/s, 50 possible{whose}", each, "1/s", peak)
            for rate, each in good.items()
        ]
    return rows


if __name__ == "__main__":
    write("overload", main())
