"""A private Docker daemon's traces on the machine: what it left goes, what was there or came from others stays."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kindcluster import firewall, machine
from tests.support.firewall_rules import meaning

DOCKERS_FILTER = """\
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br-5a9130a82c2e -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-5a9130a82c2e -j DOCKER
-A FORWARD -i br-5a9130a82c2e ! -o br-5a9130a82c2e -j ACCEPT
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.18.0.2/32 ! -i br-5a9130a82c2e -o br-5a9130a82c2e -p tcp -m tcp --dport 6443 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
"""
DOCKERS_NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [709:42320]
:POSTROUTING ACCEPT [709:42320]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.18.0.0/16 ! -o br-5a9130a82c2e -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""


def filter_table(rules: str = "", *, forward: str = "ACCEPT") -> str:
    """A table with ``rules``, the declarations of their chains first."""
    head = f"*filter\n:INPUT ACCEPT [18105:478638876]\n:FORWARD {forward} [0:0]\n:OUTPUT ACCEPT [7043:657643]\n"
    return f"{head}{rules}COMMIT\n"


OWN = '-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -m comment --comment "office, not Docker" -j ACCEPT\n'
ADDED = "-A INPUT -p tcp -m tcp --dport 8443 -j ACCEPT\n"
OF_AN_OLDER_DOCKER = """\
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-USER -s 192.0.2.7/32 -j DROP
-A DOCKER-USER -j RETURN
"""
WITH_DOCKER = filter_table(DOCKERS_FILTER, forward="DROP") + DOCKERS_NAT

CASES = {
    "a machine without rules": (filter_table(), WITH_DOCKER, filter_table()),
    "a firewall of the machine's own": (
        filter_table(OWN, forward="DROP"),
        filter_table(DOCKERS_FILTER + OWN, forward="DROP"),
        filter_table(OWN, forward="DROP"),
    ),
    "rules that an older Docker has left": (
        filter_table(OF_AN_OLDER_DOCKER), WITH_DOCKER, filter_table(OF_AN_OLDER_DOCKER),
    ),
    "a rule that somebody added meanwhile": (
        filter_table(OWN), filter_table(DOCKERS_FILTER + OWN + ADDED, forward="DROP"), filter_table(OWN + ADDED),
    ),
}  # fmt: skip
"""Rules before the daemon (recorded), while it runs (recorded), and as they have to be after it."""


def applied(tables: firewall.Tables, step: firewall.Step) -> None:
    """What ``iptables-restore --noflush`` does with a step."""
    chains = tables.setdefault(step.table, {})
    for line in step.lines:
        word, _, rest = line.partition(" ")
        name, _, rule = rest.partition(" ")
        if word.startswith(":"):
            chains.setdefault(word[1:], firewall.Chain("-")).policy = name
        elif word == "-F":
            chains[name].rules.clear()
        elif word == "-A":
            chains[name].rules.append(rule)
        elif word == "-X":
            others = [rule for chain in chains.values() for rule in chain.rules]
            assert not [rule for rule in others if rule.endswith(f"-j {name}")], f"{name} is still in use"
            assert not chains.pop(name).rules


@pytest.mark.parametrize("case", CASES)
def test_the_steps_lead_back_to_the_rules_of_before(case: str) -> None:
    before, during, after = map(firewall.parse, CASES[case])
    for step in firewall.steps(before, during):
        applied(during, step)

    assert meaning(during) == meaning(after)


def test_rules_that_are_as_they_were_are_not_touched() -> None:
    tables = firewall.parse(filter_table(OF_AN_OLDER_DOCKER + OWN))

    assert list(firewall.steps(tables, tables)) == []


IN_A_NETWORK_OF_ITS_OWN = """
import subprocess, sys
from kindcluster import firewall
before, during = sys.argv[1:]
subprocess.run(["iptables-restore"], input=before, text=True, check=True)
saved = firewall.save("iptables")
subprocess.run(["iptables-restore"], input=during, text=True, check=True)
assert not (problems := firewall.restore("iptables", saved)), problems
print(firewall.save("iptables"))
"""


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_has_the_rules_of_before(case: str) -> None:
    isolated = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("iptables-save") is None:
        pytest.skip("this machine has no iptables")
    if subprocess.run([*isolated, "iptables-save"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives its users no network namespaces")
    before, during, after = CASES[case]
    done = subprocess.run(
        [*isolated, sys.executable, "-c", IN_A_NETWORK_OF_ITS_OWN, before, during],
        env={"PYTHONPATH": str(Path(firewall.__file__).parents[1]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    assert meaning(firewall.parse(done.stdout)) == meaning(firewall.parse(after))


def test_only_docker_bridges_that_were_not_there_before_go() -> None:
    before = ["br-5a9130a82c2e", "docker0", "eth0", "lo"]
    now = [*before, "br-0242ac120002", "br-lan", "veth1a2b3c4", "wg0"]

    assert machine.new_bridges(before, now) == ["br-0242ac120002"]


def test_one_thing_that_cannot_be_put_back_does_not_keep_the_rest_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "sys"
    (kernel / "net/ipv4").mkdir(parents=True)
    (kernel / "net/ipv4/ip_forward").write_text("1\n")
    monkeypatch.setattr(machine, "_KERNEL", kernel)
    before = {
        "settings": {"gone/with/its/module": "0", "net/ipv4/ip_forward": "0"},
        "firewalls": {"no-such-firewall": ""},
        "links": sorted(entry.name for entry in Path("/sys/class/net").iterdir()),
        "modules": True,
    }
    problems = machine.restore(before)

    assert len(problems) == 2
    assert "no-such-firewall" in problems[0]
    assert "gone/with/its/module" in problems[1]
    assert (kernel / "net/ipv4/ip_forward").read_text() == "0"
