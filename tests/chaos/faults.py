"""The faults, what is promised of each, and how each is done to the cluster."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.records import Span
from tests.chaos.site import PIPELINE, SPLIT, WHOLE, Site, split
from tests.support import operator_cases as cases

EDGE_ONLY = "edge:0-4"
AFTERWARDS_SECONDS = 15.0
"""How long a fault of an instant is looked at: what it leaves behind may show late."""

LONGEST_AWAY_SECONDS = 5.0
"""From a link's cut to the last request that waits for it: two seconds are promised, the rest is for a busy machine."""


@dataclass(frozen=True, slots=True)
class Told:
    """The remark on a fault, and each time that it was done.

    One that ``flaps`` disturbs again and again. Only from its end on can anything recover: before, one disturbance
    after the other counts as the same one, or not, by some milliseconds.
    """

    note: str
    spans: tuple[Span, ...]
    flaps: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """``run`` does it and waits until the pipeline is as before; it returns a remark for the table, alone where changes
    follow one another. It fails where the fault was not what its name says, or something else was not as promised.

    ``scale`` is the share of it that a short run does. ``may_resend``: requests that were in a gateway when it died, or
    that met the end of their idle connection to one that left, are lost to it, and their clients may send them again;
    in all other cases nothing reaches a client.
    """

    key: str
    name: str
    run: Callable[[Site, float], str | Told]
    may_resend: bool = False


def _resplits(site: Site, scale: float) -> str:
    count = max(4, round(50 * scale))
    before = {pod["metadata"]["uid"] for pod in site.pods("stage")}
    for number in range(count):
        cut = 2 + number % 2
        site.apply(partitioning=split(cut))
        site.settled(f"edge:0-{cut}|cloud:{cut}-4 fp32", every=0.1)
    site.apply(partitioning=split(1))
    site.settled(SPLIT)
    assert {pod["metadata"]["uid"] for pod in site.pods("stage")} == before, "a re-split moved a pod"
    return f"{count} re-splits, no pod moved"


def _switches(site: Site, scale: float) -> str:
    count = max(2, 2 * round(5 * scale))
    for number in range(count):
        if number % 2:
            site.apply(partitioning=split(1))
            site.settled(SPLIT)
        else:
            site.apply(partitioning=WHOLE)
            site.settled(EDGE_ONLY)
    return f"{count} switches between edge-only and split"


def _scaling(site: Site, scale: float) -> str:
    for edge, cloud in ((3, 3), (1, 1), (2, 2)):
        site.apply(edge=edge, cloud=cloud, partitioning=split(1))
        site.settled(SPLIT, edge=edge, cloud=cloud)
    return "2, 3, 1, 2 replicas of both stages"


def _update(site: Site, scale: float) -> str:
    for release in (site.next_release, ""):
        before = site.serving()
        site.upgrade(release)

        def updated(old: set[str] = before) -> bool:
            return not old & site.serving() and len(site.gateways()) == 2

        cases.wait(updated, seconds=240, what="pods of the new images only")
        site.settled(SPLIT)
    return "new images of operator, gateways and stages, and back"


def _operator_killed(site: Site, scale: float) -> str:
    count = max(2, round(20 * scale))
    # In turn two switches that move pods and two that do not.
    other = (split(2), "edge:0-2|cloud:2-4 fp32")
    switches = ((WHOLE, EDGE_ONLY), (split(1), SPLIT), other, (split(1), SPLIT))
    usual = [_seconds_of(site, *switch) for switch in switches]
    moments = random.Random(14)
    inside, tries = [0] * len(switches), 0
    while sum(inside) < count:
        assert tries < 4 * count, f"of {tries} kills only {sum(inside)} fell inside a switch"
        which = tries % len(switches)
        tries += 1
        target, summary = switches[which]
        kill = site.operator_killer()
        site.apply(partitioning=target)
        time.sleep(moments.uniform(0.0, usual[which]))
        kill()
        inside[which] += site.is_switching()
        site.replace_operator()
        site.settled(summary, seconds=120)
    site.apply(partitioning=split(1))
    site.settled(SPLIT)
    moving = inside[0] + inside[1]
    return f"{count} times inside a switch, {moving} of which moved pods, by {tries} kills at random moments"


def _seconds_of(site: Site, target: cases.Json, summary: str) -> float:
    site.apply(partitioning=target)
    began = time.monotonic()
    site.settled(summary, every=0.05)
    return time.monotonic() - began


def _gateway_restarted(site: Site, scale: float) -> str:
    for name in site.gateways():
        site.ns("delete", "pod", name, "--wait=false")

        def replaced(old: str = name) -> bool:
            return old not in site.gateways() and len(site.gateways()) == 2

        cases.wait(replaced, seconds=60, what="2 gateways")
    return "both of two replicas, one after the other"


def _gateway_killed(site: Site, scale: float) -> Told:
    (name, *_) = site.gateways()
    held = site.kill("runtime.gateway", name)
    time.sleep(AFTERWARDS_SECONDS)
    cases.wait(lambda: len(site.gateways()) == 2, seconds=60, what="2 gateways")
    return Told(f"SIGKILL of one of two replicas with {len(site.inside(held))} requests inside", (held,))


def _stage_killed(site: Site, scale: float) -> Told:
    spans, inside = [], []
    for tier in ("edge", "cloud"):
        pod = site.pods("stage", **{"splitplane.dev/tier": tier})[0]["metadata"]["name"]
        held = site.kill("runtime.stage", pod)
        time.sleep(AFTERWARDS_SECONDS)
        site.settled(SPLIT)
        spans.append(held)
        inside.append(len(site.inside(held)))
    edge, cloud = inside
    return Told(
        f"SIGKILL of an edge and a cloud replica with {edge} and {cloud} requests inside, sent to others",
        tuple(spans),
    )


def _node_lost(site: Site, scale: float) -> Told:
    # An edge node would take a gateway with it: its requests are the client's to send again.
    with site.off(site.cloud_node) as held:
        time.sleep(20)
    ended = time.time()
    site.settled(SPLIT)
    inside = len(site.inside(held))
    note = f"power cut of {site.cloud_nodes}, 20 s, with {inside} requests inside, sent another way"
    return Told(note, ((held[0], ended),))


def _node_paused(site: Site, scale: float) -> Told:
    began = time.time()
    with site.silent(site.cloud_node):
        time.sleep(20)
    ended = time.time()
    site.settled(SPLIT)
    return Told(f"{site.cloud_nodes} stands still for 20 s", ((began, ended),))


def _edge_node_lost(site: Site, scale: float) -> Told:
    with site.off(site.edge_node) as held:
        time.sleep(20)
    ended = time.time()
    cases.wait(lambda: len(site.gateways()) == 2, seconds=60, what="2 gateways")
    site.settled(SPLIT)
    inside = len(site.inside(held))
    note = f"power cut of one of two edge nodes, 20 s, with {inside} requests inside its stage and gateway"
    return Told(note, ((held[0], ended),))


def _link_cut(site: Site, scale: float) -> Told:
    cut = time.time()
    site.link(down=True)
    time.sleep(10)
    healed = time.time()
    site.link(down=False)
    time.sleep(10)
    records = site.between(cut, time.time())
    held_up = [r.sent + r.seconds - cut for r in records if r.sent < healed and r.disturbed]
    away = max(held_up, default=0.0)
    assert away < LONGEST_AWAY_SECONDS, f"requests waited for the link until {away:.1f} s after its cut"
    assert {r.plan for r in records if cut + away < r.sent < healed} == {EDGE_ONLY}, "not edge-only while it was cut"
    back = min((r.sent - healed for r in records if r.sent > healed and "cloud" in r.plan), default=None)
    assert back is not None, "not split again within 10 s of the link"
    site.settled(SPLIT)
    return Told(
        f"edge-only, and nobody waits, after {away:.1f} s; split again {back:.1f} s after the link", ((cut, healed),)
    )


def _link_flapping(site: Site, scale: float) -> Told:
    seconds = max(10, round(60 * scale))
    began = time.time()
    for _ in range(seconds // 2):
        site.link(down=True)
        time.sleep(1)
        site.link(down=False)
        ended = time.time()
        time.sleep(1)
    site.settled(SPLIT)
    return Told(f"down and up by the second for {seconds} s", ((began, ended),), flaps=True)


def _prometheus_gone(site: Site, scale: float) -> Told:
    seconds = max(30, round(300 * scale))
    began = time.time()
    with site.without("prometheus"):
        site.ns.wait_condition(PIPELINE, "MetricsAvailable", "False")
        # From now on fewer replicas would do, and the operator may take them away as soon as it knows the load.
        site.apply(least=1, partitioning=split(1))
        time.sleep(max(0.0, began + seconds - time.time()))
        status = site.status()
        assert status["replicas"] == "edge 2/2, cloud 2/2", f"without metrics, replicas are {status['replicas']}"
        assert status["decisions"][0]["reason"] == "MetricsMissing", f"the plan is held for {status['decisions'][0]}"
    ended = time.time()
    site.settled(SPLIT, edge=1, cloud=1, seconds=180)
    later = time.time() - ended
    site.apply(partitioning=split(1))
    site.settled(SPLIT)
    note = f"{seconds} s; fewer replicas were due, and the plan was held until {later:.0f} s after it was back"
    return Told(note, ((began, ended),))


def _api_gone(site: Site, scale: float) -> Told:
    seconds = max(15, round(120 * scale))
    began = time.time()
    with site.without("kube-apiserver"):
        time.sleep(seconds)
    cases.wait(lambda: _answers(site), seconds=60, what="the API server")
    ended = time.time()
    site.settled(SPLIT, seconds=120)
    return Told(f"{seconds} s", ((began, ended),))


def _answers(site: Site) -> bool:
    try:
        site.ns.get("ipipe", PIPELINE)
    except AssertionError:
        return False
    return True


FAULTS = (
    Fault("resplits", "re-splits inside what is resident", _resplits),
    Fault("switches", "switches that move residency", _switches),
    Fault("scaling", "scale up and down", _scaling),
    Fault("update", "rolling update", _update, may_resend=True),
    Fault("operator", "operator killed in a switch", _operator_killed),
    Fault("gateway", "gateway replica restarted", _gateway_restarted),
    Fault("stage", "stage pod killed", _stage_killed),
    Fault("gateway-killed", "gateway pod killed", _gateway_killed, may_resend=True),
    Fault("cloud-node", "cloud node lost", _node_lost),
    Fault("edge-node", "edge node lost", _edge_node_lost, may_resend=True),
    Fault("cut", "link cut for 10 s", _link_cut),
    Fault("flapping", "link flapping", _link_flapping),
    Fault("prometheus", "Prometheus gone", _prometheus_gone),
    Fault("api", "API server gone", _api_gone),
)
"""On an embedded cluster."""
_PAUSED = Fault("cloud-node-paused", "cloud node paused", _node_paused)
_BY_KEY = {fault.key: fault for fault in (*FAULTS, _PAUSED)}
ON_KIND = tuple(_BY_KEY[key] for key in ("update", "stage", "cloud-node", "cloud-node-paused", "cut", "flapping"))
"""Those that real kubelets and containers may make another thing of."""
