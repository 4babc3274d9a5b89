"""What the pod's environment tells the gateway (docs/architecture.md, "Pods")."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingsError(Exception):
    """A variable is missing or malformed: the process cannot start."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Ports are 8080 and 9000 in pods; other values exist for several gateways on one address in tests."""

    namespace: str
    pipeline: str
    tier: str
    pod_ip: str
    route_table: str
    state_dir: Path
    http_port: int = 8080
    grpc_port: int = 9000
    drain_pause_seconds: float = 2.0
    """Between ceasing to be ready and refusing connections, so that clients hear of the first before the second."""
    drain_seconds: float = 25.0
    """Longest wait for requests inside after that; less than a pod's termination grace period."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises ``SettingsError`` naming what is missing."""
        names = ("NAMESPACE", "PIPELINE", "TIER", "POD_IP", "ROUTE_TABLE", "STATE_DIR")
        missing = [f"SPLITPLANE_{name}" for name in names if not environment.get(f"SPLITPLANE_{name}")]
        if missing:
            raise SettingsError(f"set {', '.join(missing)}: the gateway's Deployment gives them to its pods")
        return cls(
            namespace=environment["SPLITPLANE_NAMESPACE"],
            pipeline=environment["SPLITPLANE_PIPELINE"],
            tier=environment["SPLITPLANE_TIER"],
            pod_ip=environment["SPLITPLANE_POD_IP"],
            route_table=environment["SPLITPLANE_ROUTE_TABLE"],
            state_dir=Path(environment["SPLITPLANE_STATE_DIR"]),
        )
