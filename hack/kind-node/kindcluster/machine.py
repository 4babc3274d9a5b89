"""What Docker and the kubelets change on this machine, remembered so that it can be put back."""

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

_SETTINGS = (
    "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",  # dockerd
    "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_max",  # kube-proxy
    "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxbytes",  # kubelet
    "kernel/keys/root_maxkeys", "fs/file-max", "fs/nr_open",  # and systemd
)  # fmt: skip
_MODULES = Path("/lib/modules")
_DOCKERS = re.compile(r"\bDOCKER|\bdocker0\b|\bbr-[0-9a-f]{12}\b")
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
        "policies": {command: _forward_policy(command) for command in _firewalls()},
        "modules": _MODULES.exists(),
    }


def restore(before: dict[str, Any]) -> None:
    """Take away what dockerd leaves behind: its bridge, its rules, the policy and the kernel settings it changed."""
    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
    for command, policy in before["policies"].items():
        rules = _rules(command)
        kept = [line for line in rules.splitlines() if not _DOCKERS.search(line)]
        subprocess.run([f"{command}-restore"], input="\n".join(kept) + "\n", text=True, check=True)
        subprocess.run([command, "--policy", "FORWARD", policy], check=True)
    for name, value in before["settings"].items():
        if _setting(name) != value:
            Path("/proc/sys", name).write_text(value)
    if not before["modules"]:
        with suppress(OSError):  # made for kind's mount of it
            _MODULES.rmdir()


def _setting(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None


def _firewalls() -> list[str]:
    return [command for command in ("iptables", "ip6tables") if shutil.which(command)]


def _rules(command: str) -> str:
    return subprocess.run([f"{command}-save"], capture_output=True, text=True, check=True).stdout


def _forward_policy(command: str) -> str:
    """ACCEPT or DROP. A table that is not there yet accepts."""
    found = re.search(r"^:FORWARD (\w+)", _rules(command).partition("*filter")[2], re.MULTILINE)
    return found[1] if found else "ACCEPT"
