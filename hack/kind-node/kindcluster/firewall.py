"""Rules of iptables as they were before Docker, put back without touching those of others.

Docker's are those that name its chains or its bridges. A rule of Docker's that was there before (of a daemon that the
machine had once) is not ours to take away, and a rule that somebody else has added since is not Docker's.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from splitplane.local.errors import LocalError

_DOCKERS = re.compile(r"\bDOCKER|\bdocker0\b|\bbr-[0-9a-f]{12}\b")


@dataclass(slots=True)
class Chain:
    """One chain of a table."""

    policy: str
    """``ACCEPT`` or ``DROP``; ``-`` of a chain that is not built in."""
    rules: list[str] = field(default_factory=list)
    """Without the chain's name: ``-o docker0 -j DOCKER``."""


Tables = dict[str, dict[str, Chain]]


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one chain: as a whole or not at all."""

    table: str
    chain: str
    lines: tuple[str, ...]

    @property
    def input(self) -> str:
        """For ``iptables-restore --noflush``."""
        return "\n".join((f"*{self.table}", *self.lines, "COMMIT", ""))


def commands() -> list[str]:
    """The firewalls that the machine has."""
    return [command for command in ("iptables", "ip6tables") if shutil.which(f"{command}-save")]


def save(command: str) -> str:
    """All rules, in the form of ``iptables-save``.

    Raises:
        LocalError: they cannot be read; in the command's own words.
    """
    done = subprocess.run([f"{command}-save"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalError(f"{command}-save: {done.stderr.strip()}")
    return done.stdout


def restore(command: str, before: str) -> list[str]:
    """Put the rules back; returns what could not be, in words.

    Raises:
        LocalError: the rules as they are cannot be read.
    """
    problems = []
    for step in steps(parse(before), parse(save(command))):
        done = subprocess.run(
            [f"{command}-restore", "--noflush"], input=step.input, capture_output=True, text=True, check=False
        )
        if done.returncode:
            problems.append(f"{command}, chain {step.chain} of {step.table}: {done.stderr.strip()}")
    return problems


def parse(saved: str) -> Tables:
    """Tables, and in each its chains, of what ``iptables-save`` wrote."""
    tables: Tables = {}
    chains: dict[str, Chain] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = Chain(policy)
        elif line.startswith("-A "):
            name, _, rule = line.removeprefix("-A ").partition(" ")
            chains[name].rules.append(rule)
    return tables


def steps(before: Tables, now: Tables) -> Iterator[Step]:
    """The changes that lead from ``now`` back to ``before``, in an order in which no chain is missed."""
    for table in {**before, **now}:
        was, present = before.get(table, {}), now.get(table, {})
        for name in [name for name in was if name not in present]:  # first, since rules of other chains may lead there
            yield Step(table, name, (f":{name} {was[name].policy} [0:0]",))
        strange = [
            name for name, chain in present.items()
            if name not in was and chain.policy == "-" and _DOCKERS.search(name)
        ]  # fmt: skip
        for name in strange:
            yield Step(table, name, (f"-F {name}",))
        for name in [name for name in {**was, **present} if name not in strange]:
            old, new = was.get(name, Chain("ACCEPT")), present.get(name, Chain("-"))
            policy = (f":{name} {old.policy} [0:0]",) if {old.policy, new.policy} == {"ACCEPT", "DROP"} else ()
            rules = _wanted(old.rules, new.rules)
            if rules != new.rules:
                yield Step(table, name, (*policy, f"-F {name}", *(f"-A {name} {rule}" for rule in rules)))
            elif policy:
                yield Step(table, name, policy)
        for name in strange:  # last, when nothing leads there any more
            yield Step(table, name, (f"-X {name}",))


def _wanted(before: list[str], now: list[str]) -> list[str]:
    """Rules of a chain without Docker's new ones; those of before are there, in their order."""
    kept = [rule for rule in now if rule in before or not _DOCKERS.search(rule)]
    if [rule for rule in kept if rule in before] == before:
        return kept
    return before + [rule for rule in kept if rule not in before]
