"""Which interfaces the kind cluster's commands slow down, and that these are ones of its nodes: no other is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kindcluster import links
from kindcluster.engine import Engine
from splitplane.local.errors import LocalError

NODE = "splitplane-worker3"
DOCKER = """
import json, sys
from pathlib import Path

scene = json.loads(Path({scene!r}).read_text())
with open({calls!r}, "a") as file:
    print(*sys.argv[1:], file=file)
match sys.argv[1:]:
    case ["exec", _, "cat", path]:
        print(scene["node"][path.rpartition("/")[2]])
    case ["exec", _, "tc", "qdisc", "show", *_]:
        print(scene["node"]["qdisc"])
    case ["inspect", *_]:
        print("sha256:0123")
    case ["run", *options] if "--entrypoint=ip" in options:
        print(json.dumps(scene["machine"]))
"""


class Scene:
    """A Docker whose one node and whose machine have the interfaces that a test says, and which notes all commands."""

    def __init__(self, folder: Path) -> None:
        self._scene, self._calls = folder / "scene.json", folder / "calls"
        program = folder / "docker"
        script = DOCKER.format(scene=str(self._scene), calls=str(self._calls))
        program.write_text(f"#!{sys.executable}\n{script}")
        program.chmod(0o755)
        self.engine = Engine(str(program), None)

    def set(self, node: dict[str, object], machine: list[dict[str, object]]) -> None:
        self._scene.write_text(json.dumps({"node": node, "machine": machine}))

    @property
    def shaped(self) -> list[str]:
        """Commands of tc that change something: ``where: command``."""
        found = []
        for line in self._calls.read_text().splitlines():
            if line.startswith(f"exec {NODE} tc qdisc ") and " show " not in line:
                found.append(f"node: {line.partition(' tc ')[2]}")
            elif "--entrypoint=tc" in line:
                found.append(f"machine: {line.partition('sha256:0123 ')[2]}")
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def link(name: str, *, index: int, peer: int | None) -> dict[str, object]:
    """An interface as iproute2 lists it; ``peer`` is the number of its other end, in that one's own network."""
    return {"ifindex": index, "ifname": name} | ({} if peer is None else {"link_index": peer})


LIMIT = "root tbf rate 8000000bit burst 3200 latency 2s"
OURS, ANOTHERS = link("veth5a1c2d3", index=17, peer=16), link("veth9e8f7a6", index=19, peer=18)


def test_a_node_is_slowed_at_both_ends_of_its_veth_and_nowhere_else(scene: Scene) -> None:
    scene.set({"ifindex": 16, "iflink": 17, "qdisc": ""}, [ANOTHERS, OURS])
    links.shape(scene.engine, NODE, "8Mbit")

    assert scene.shaped == [
        f"node: qdisc replace dev eth0 {LIMIT}",
        f"machine: qdisc replace dev veth5a1c2d3 {LIMIT}",
    ]


def test_the_limit_is_lifted_at_both_ends_and_where_there_is_none_nothing_is_touched(scene: Scene) -> None:
    scene.set({"ifindex": 16, "iflink": 17, "qdisc": "qdisc noqueue 0: root refcnt 2"}, [ANOTHERS, OURS])
    links.clear(scene.engine, NODE)
    assert scene.shaped == []

    scene.set({"ifindex": 16, "iflink": 17, "qdisc": "qdisc tbf 8001: root refcnt 2 rate 8Mbit"}, [ANOTHERS, OURS])
    links.clear(scene.engine, NODE)
    assert scene.shaped == ["node: qdisc delete dev eth0 root", "machine: qdisc delete dev veth5a1c2d3 root"]


@pytest.mark.parametrize(
    ("node", "machine"),
    [
        # The node's interface is none of a pair: its number is that of the machine's own eth0, itself a veth here.
        ({"ifindex": 16, "iflink": 2}, [link("eth0", index=2, peer=16), ANOTHERS]),
        ({"ifindex": 16, "iflink": 19}, [ANOTHERS]),  # the number of another container's
        ({"ifindex": 16, "iflink": 16}, [link("veth0", index=16, peer=None)]),  # of one without another end here
        ({"ifindex": 16, "iflink": 17}, []),  # Docker runs on another machine
    ],
    ids=["the machine's own", "another container's", "no pair", "another machine"],
)
def test_what_is_not_the_nodes_own_veth_is_refused_before_anything_is_slowed(
    node: dict[str, object], machine: list[dict[str, object]], scene: Scene
) -> None:
    scene.set({"qdisc": "", **node}, machine)
    with pytest.raises(LocalError, match=f"{NODE}.*no veth.*not shaped"):
        links.shape(scene.engine, NODE, "8Mbit")
    assert scene.shaped == []


def test_no_limit_is_none_to_shape_by(scene: Scene) -> None:
    scene.set({"ifindex": 16, "iflink": 17, "qdisc": ""}, [OURS])
    with pytest.raises(LocalError, match="no limit"):
        links.shape(scene.engine, NODE, "unlimited")


IN_NETWORKS_OF_THEIR_OWN = """
import subprocess, sys, time
from pathlib import Path
from kindcluster import links
from kindcluster.engine import Engine
from splitplane.local.errors import LocalError

folder = Path(sys.argv[1])

def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

def network(name):
    \"\"\"Another network, whose interfaces its own /sys shows; it is there when the file is.\"\"\"
    script = f"mount -t sysfs sys /sys && touch {folder}/{name} && exec sleep 60"
    process = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", script])
    while not (folder / name).exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process

node, outside = network("node"), network("outside")
try:
    docker = folder / "docker"
    docker.write_text(f\"\"\"#!/bin/bash
case "$1" in
exec) exec nsenter --net --mount --target {node.pid} "${{@:3}}";;
inspect) echo image;;
run)
    while [[ "$1" != image ]]; do [[ "$1" = --entrypoint=* ]] && program=${{1#*=}}; shift; done
    exec "$program" "${{@:2}}";;
esac
\"\"\")
    docker.chmod(0o755)
    engine = Engine(str(docker), None)

    def shaped():
        return sum(" tbf " in line for line in run("tc", "qdisc", "show").splitlines())

    # The machine's own interface is a veth as well, and both of its numbers are those of the node's below.
    run("ip", "link", "add", "name", "eth0", "index", "40", "type", "veth",
        "peer", "name", "eth0", "index", "41", "netns", str(outside.pid))
    run("ip", "link", "add", "name", "vethnode", "index", "50", "type", "veth",
        "peer", "name", "eth0", "index", "51", "netns", str(node.pid))
    links.shape(engine, "node", "8Mbit")
    for where in ((), ("nsenter", "--net", "--target", str(node.pid))):
        told = run(*where, "tc", "qdisc", "show")
        assert "rate 8Mbit burst 3200b lat 2s" in told, told
    assert "tbf" in run("tc", "qdisc", "show", "dev", "vethnode")
    assert shaped() == 1
    links.clear(engine, "node")
    assert shaped() == 0

    run("ip", "link", "delete", "vethnode")
    # Now the node's other end is not here but outside, where it has the number that eth0 has here.
    run("nsenter", "--net", "--target", str(outside.pid), "ip", "link", "add", "name", "vethfar", "index", "40",
        "type", "veth", "peer", "name", "eth0", "index", "41", "netns", str(node.pid))
    try:
        links.shape(engine, "node", "8Mbit")
    except LocalError as error:
        print(error)
    assert shaped() == 0
finally:
    for process in (node, outside):
        process.kill()
"""


def test_the_kernels_own_veths_are_told_apart_and_shaped(tmp_path: Path) -> None:
    isolated = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("this machine has no iproute2")
    probe = [*isolated, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine gives its users no network namespaces")
    done = subprocess.run(
        [*isolated, sys.executable, "-c", IN_NETWORKS_OF_THEIR_OWN, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(links.__file__).parents[1])},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "number 40" in done.stdout
