"""The agent's configuration file, the contract between the cluster's supervisor and each node agent."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, IPvAnyNetwork, ValidationError
from pydantic.alias_generators import to_camel

from splitplane.local.agent.errors import ConfigError

EMULATED_ANNOTATION = "local.splitplane.dev/emulated"
"""On every node that an agent registers: what of it is emulated."""


class Taint(BaseModel):
    """A taint that the node registers with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class AgentConfig(BaseModel):
    """One node: its identity, size, addresses and the files that it works with. JSON keys are in camelCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    node: str
    tier: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cpu: str
    """Allocatable CPU, a Kubernetes quantity."""
    memory: str
    """Allocatable memory, a Kubernetes quantity."""
    max_pods: int = Field(default=110, gt=0)
    speed_factor: float = Field(default=1.0, ge=1.0)
    """How many times slower than this machine the node's device is; the runtime emulates it by sleeping."""
    price_per_hour: float = Field(default=0.0, ge=0.0)
    """Price that the node exports as ``node_total_hourly_cost`` while ``<stateDir>/price`` does not exist."""
    kubeconfig: Path
    state_dir: Path
    node_address: IPvAnyAddress
    pod_cidr: IPvAnyNetwork
    kubelet_port: int
    metrics_port: int
    serving_cert: Path
    serving_key: Path
    client_ca: Path
    proxy: str | None = None
    """The uplink proxy that shapes what pods send to other tiers."""
    no_proxy: tuple[str, ...] = ()
    """CIDRs that pods reach without the proxy."""
    images: dict[str, Path] = Field(default_factory=dict)
    """Repository name to the folder of executables that stands for the image."""
    api_server: str
    cluster_ca: Path
    starts_dir: Path
    """Where agents of one machine take turns at starting containers."""
    node_lease_seconds: int = Field(default=4, gt=0)

    @property
    def pods_dir(self) -> Path:
        """Where pods keep their state, volumes and logs: one folder per pod UID."""
        return self.state_dir / "pods"

    @property
    def price_file(self) -> Path:
        """Overrides the price while it exists; read at each scrape."""
        return self.state_dir / "price"


def load(path: Path) -> AgentConfig:
    """Read and check a configuration file.

    Raises :class:`ConfigError` with what to correct.
    """
    try:
        raw: Any = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the agent's configuration {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON (line {error.lineno}: {error.msg}); write it again") from error
    try:
        return AgentConfig.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path} does not describe a node: {faults}") from error
