"""A node's link to the rest, slowed by tc's token bucket in both directions.

Out of the node it is the node's own interface that is shaped; into it, the other end of the same veth pair, which is
an interface of the machine that Docker runs on. Nothing but that veth is touched there.
"""

import json
import re

from kindcluster.engine import Engine
from splitplane.local.config import parse_rate
from splitplane.local.errors import LocalError

_INTERFACE = "eth0"
_BUCKET_SECONDS = 0.002
"""What may pass at full speed: as much as a timer may be late. More would let whole tensors through unshaped."""
_LEAST_BUCKET_BYTES = 3200
"""Two packets."""


def shape(engine: Engine, node: str, rate: str) -> None:
    """Limit what goes into and out of a node to ``rate`` (such as ``40Mbit``), all of its traffic together.

    Raises:
        ValueError: not a rate; the message shows one.
        LocalError: no limit; the node's interface is not one end of a veth pair, or tc fails.
    """
    bits = parse_rate(rate)
    if bits is None:
        raise LocalError(f"{rate} is no limit.")
    peer = _veth_peer(engine, node)
    engine.run("exec", node, *_limit(_INTERFACE, bits))
    _on_machine(engine, node, *_limit(peer, bits))


def clear(engine: Engine, node: str) -> None:
    """Lift the limit of a node's link, if it has one. Raises ``LocalError`` as :func:`shape`."""
    if "tbf" not in engine.run("exec", node, "tc", "qdisc", "show", "dev", _INTERFACE):
        return
    engine.run("exec", node, "tc", "qdisc", "delete", "dev", _INTERFACE, "root")
    _on_machine(engine, node, "tc", "qdisc", "delete", "dev", _veth_peer(engine, node), "root")


def _limit(interface: str, bits_per_second: float) -> tuple[str, ...]:
    bucket = max(_LEAST_BUCKET_BYTES, int(bits_per_second / 8 * _BUCKET_SECONDS))
    return ("tc", "qdisc", "replace", "dev", interface, "root", "tbf", "rate", f"{bits_per_second:.0f}bit",
            "burst", str(bucket), "latency", "2s")  # fmt: skip


def _veth_peer(engine: Engine, node: str) -> str:
    """The machine's end of a node's veth pair."""
    index = int(engine.run("exec", node, "cat", f"/sys/class/net/{_INTERFACE}/iflink"))
    own = int(engine.run("exec", node, "cat", f"/sys/class/net/{_INTERFACE}/ifindex"))
    for link in json.loads(_on_machine(engine, node, "ip", "-json", "-details", "link", "show", "type", "veth")):
        if link["ifindex"] == index and link.get("link_index") == own and re.match("veth", link["ifname"]):
            return str(link["ifname"])
    raise LocalError(f"The node {node}'s {_INTERFACE} has no veth on this machine (number {index}): it is not shaped.")


def _on_machine(engine: Engine, node: str, *command: str) -> str:
    """Run a command of the node's image in the network of the machine that Docker runs on."""
    image = engine.run("inspect", "--format={{.Image}}", node).strip()
    return engine.run(
        "run", "--rm", "--network=host", "--cap-add=NET_ADMIN", f"--entrypoint={command[0]}", image, *command[1:]
    )
