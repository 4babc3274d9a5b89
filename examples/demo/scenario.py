"""The demo's events: what is done to the cluster, and what must come of it."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.kube import Active
from demo.sites import Site

FRAME_SECONDS = {"edge": 0.5, "cloud": 0.12}
"""What one frame of audio takes on a device of each tier."""

REPLICA_PRICES = {"edge": 0.05, "cloud": 0.30}
"""What a replica's share of its node costs per hour."""

BASE_RATE = 2.5
FAST_LINK = "40Mbit"
SLOW_LINK = "3Mbit"


@dataclass(frozen=True, slots=True)
class Step:
    """One event. ``change`` is done to the cluster; ``rate`` is the client's pace from then on, per second.

    ``settled`` says of (plan before, plan now, plan of the first steady state) whether the wanted plan serves, which
    one of ``reasons`` must have brought; ``within`` is how many seconds that may take.
    """

    letter: str
    name: str
    reasons: frozenset[str]
    settled: Callable[[Active, Active, Active], bool]
    change: Callable[[Site], None] = lambda _: None
    rate: float = BASE_RATE
    within: float = 60.0


def _is_split(plan: Active) -> bool:
    return len(plan.cuts) > 1


STEPS = (
    Step(
        "a", f"(a) edge-cloud link drops to {SLOW_LINK}/s", frozenset({"LinkChanged"}),
        lambda before, now, _: _is_split(now) and now.cuts != before.cuts,
        change=lambda site: site.limit_link(SLOW_LINK),
    ),
    Step(
        "b", f"(b) link back at {FAST_LINK}/s", frozenset({"LinkChanged"}),
        lambda _, now, first: now.cuts == first.cuts,
        change=lambda site: site.limit_link(FAST_LINK),
    ),
    Step(
        "c", "(c) three times the requests", frozenset({"DemandGrew"}),
        lambda before, now, _: any(count > before.replicas.get(tier, 0) for tier, count in now.replicas.items()),
        rate=3 * BASE_RATE, within=120.0,
    ),
    Step(
        "d", "(d) the cloud node's price doubles", frozenset({"PriceChanged"}),
        lambda before, now, _: now.replicas != before.replicas or now.cuts != before.cuts,
        change=lambda site: site.set_cloud_price(2 * REPLICA_PRICES["cloud"]), rate=3 * BASE_RATE, within=120.0,
    ),
    Step(
        "e", "(e) the cloud node dies", frozenset({"LinkChanged", "NodeLost"}),
        lambda _, now, __: bool(now.cuts) and "cloud" not in now.replicas,
        change=lambda site: site.lose_cloud(), rate=3 * BASE_RATE, within=120.0,
    ),
)  # fmt: skip
