"""The demo's events: what is done to the cluster, and what must come of it."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.kube import Active

FRAME_SECONDS = {"edge": 0.6, "cloud": 0.12}
"""What one frame of audio takes on a device of each tier."""

BASE_RATE = 2.5
FAST_LINK = "40Mbit"
SLOW_LINK = "3Mbit"


@dataclass(frozen=True, slots=True)
class Step:
    """One event. ``commands`` are arguments of `splitplane local`; ``rate`` is the client's new pace, if it changes.

    ``settled`` says of (plan before, plan now, plan of the first steady state) whether the wanted plan serves;
    ``within`` is how many seconds that may take.
    """

    letter: str
    name: str
    settled: Callable[[Active, Active, Active], bool]
    commands: tuple[tuple[str, ...], ...] = ()
    rate: float = BASE_RATE
    within: float = 60.0


def _is_split(plan: Active) -> bool:
    return len(plan.cuts) > 1


STEPS = (
    Step(
        "a", f"(a) edge-cloud link drops to {SLOW_LINK}/s",
        lambda before, now, _: _is_split(now) and now.cuts != before.cuts,
        commands=(("link", "edge", "cloud", "--rate", SLOW_LINK),),
    ),
    Step(
        "b", f"(b) link back at {FAST_LINK}/s",
        lambda _, now, first: now.cuts == first.cuts,
        commands=(("link", "edge", "cloud", "--rate", FAST_LINK),),
    ),
    Step(
        "c", "(c) three times the requests",
        lambda before, now, _: sum(now.replicas.values()) > sum(before.replicas.values()),
        rate=3 * BASE_RATE, within=120.0,
    ),
    Step(
        "d", "(d) the cloud node's price doubles",
        lambda before, now, _: now.replicas != before.replicas or now.cuts != before.cuts,
        commands=(("node", "price", "cloud-1", "4.80"),), rate=3 * BASE_RATE, within=120.0,
    ),
    Step(
        "e", "(e) the cloud node dies",
        lambda _, now, __: bool(now.cuts) and "cloud" not in now.replicas,
        commands=(("node", "stop", "cloud-1"),), rate=3 * BASE_RATE,
    ),
)  # fmt: skip
