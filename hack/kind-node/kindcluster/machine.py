"""What Docker and the kubelets change on this machine, remembered so that it can be put back."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kindcluster import firewall
from splitplane.local.errors import LocalError

_SETTINGS = (
    "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",  # dockerd
    "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_max",  # kube-proxy
    "vm/overcommit_memory", "kernel/panic", "vm/panic_on_oom", "kernel/panic_on_oops",  # kubelet
    "kernel/keys/root_maxbytes", "kernel/keys/root_maxkeys", "fs/file-max", "fs/nr_open",  # and systemd
)  # fmt: skip
_KERNEL = Path("/proc/sys")
_MODULES = Path("/lib/modules")
_LINKS = Path("/sys/class/net")
_BRIDGE = re.compile(r"docker0|br-[0-9a-f]{12}")
_CAP_SYS_RESOURCE = 24


def may_raise_limits() -> bool:
    """Whether this process may hand CAP_SYS_RESOURCE on, as a privileged container wants it."""
    status = Path("/proc/self/status").read_text()
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bounding is None or bool(int(bounding[1], 16) >> _CAP_SYS_RESOURCE & 1)


def describe() -> dict[str, Any]:
    """The machine as it is now, for ``restore``."""
    return {
        "settings": {name: value for name in _SETTINGS if (value := _setting(name)) is not None},
        "firewalls": _firewalls(),
        "links": _links(),
        "modules": _MODULES.exists(),
    }


def restore(before: dict[str, Any]) -> list[str]:
    """Take away what dockerd has left behind since ``before``, and only that.

    Its bridges go, and its chains and rules; policies and kernel settings are as they were. What was there before, and
    what others have added since, stays. One thing that fails does not keep the rest from being put back.

    Returns:
        what could not be put back, in words.
    """
    problems: list[str] = []
    for link in new_bridges(before["links"], _links()):
        with _noting(problems, f"the bridge {link}"):
            subprocess.run(["ip", "link", "delete", link], stderr=subprocess.PIPE, text=True, check=True)
    for command, rules in before["firewalls"].items():
        with _noting(problems, f"the rules of {command}"):
            problems += firewall.restore(command, rules)
    for name, value in before["settings"].items():
        if _setting(name) != value:
            with _noting(problems, f"the kernel setting {name}, which was {value}"):
                (_KERNEL / name).write_text(value)
    if not before["modules"]:
        with suppress(OSError):  # made for kind's mount of it
            _MODULES.rmdir()
    return problems


def new_bridges(before: list[str], now: list[str]) -> list[str]:
    """Docker's bridges that were not there before."""
    return [link for link in now if _BRIDGE.fullmatch(link) and link not in before]


def _firewalls() -> dict[str, str]:
    rules = {}
    for command in firewall.commands():
        with suppress(LocalError):  # a kernel without IPv6: dockerd can add nothing there either
            rules[command] = firewall.save(command)
    return rules


@contextmanager
def _noting(problems: list[str], what: str) -> Iterator[None]:
    """Go on after something that fails, and keep its words."""
    try:
        yield
    except (LocalError, OSError) as error:
        problems.append(f"{what}: {error}")
    except subprocess.CalledProcessError as error:
        problems.append(f"{what}: {error.stderr.strip()}")


def _links() -> list[str]:
    return sorted(entry.name for entry in _LINKS.iterdir())


def _setting(name: str) -> str | None:
    try:
        return (_KERNEL / name).read_text().strip()
    except OSError:
        return None
