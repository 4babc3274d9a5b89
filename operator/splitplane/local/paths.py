"""Where a cluster keeps its things, so that no other module builds a path by hand."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from splitplane.local.errors import LocalError


def state_home() -> Path:
    """The folder of all clusters of this user (``$XDG_STATE_HOME/splitplane``)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "splitplane"


def cache_home() -> Path:
    """The folder of binaries and toolchains (``$XDG_CACHE_HOME/splitplane``); safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitplane"


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """The files of one cluster."""

    root: Path

    @classmethod
    def of(cls, name: str) -> "ClusterPaths":
        """The paths of the cluster called ``name``.

        Raises:
            LocalError: the name could not be a folder's and an object's name.
        """
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", name):
            raise LocalError(
                f"{name!r} cannot be a cluster's name: use 1 to 40 lower-case letters, digits and '-', "
                "beginning and ending with a letter or digit."
            )
        return cls(state_home().absolute() / name)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def command_lock(self) -> Path:
        """Held by ``up`` and ``down`` while they work. Beside the folder, because ``--purge`` removes that."""
        return self.root.parent / f".{self.name}.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor as long as it lives: whoever can take it knows that there is none."""
        return self.root / "supervisor.lock"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def binaries(self) -> Path:
        """The programs that ``up`` found or built (JSON, name to path)."""
        return self.root / "binaries.json"

    @property
    def addresses(self) -> Path:
        """Ports and subnets, chosen at the first start and kept while they stay free."""
        return self.root / "addresses.json"

    @property
    def status(self) -> Path:
        """What the supervisor last knew (JSON)."""
        return self.root / "status.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def kubeconfigs(self) -> Path:
        return self.root / "kubeconfigs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def prometheus(self) -> Path:
        return self.root / "prometheus"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def links(self) -> Path:
        """Rates and delays between tiers; watched by the uplink proxy."""
        return self.root / "links.json"

    @property
    def uplink(self) -> Path:
        """The uplink proxy's addresses."""
        return self.root / "uplink.json"

    @property
    def starts(self) -> Path:
        """Locks by which the agents start containers in turns."""
        return self.root / "starts"

    def node(self, node: str) -> Path:
        """The folder that a node's agent works in."""
        return self.root / "nodes" / node

    def node_stopped(self, node: str) -> Path:
        """Present while the user wants the node off."""
        return self.node(node) / "stopped"

    def node_price(self, node: str) -> Path:
        """The node's price per hour; read again by its agent when it changes."""
        return self.node(node) / "price"
