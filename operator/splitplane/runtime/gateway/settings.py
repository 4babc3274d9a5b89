"""What the pod's environment tells the gateway (docs/architecture.md, "Pods")."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitplane.domain.leaving import DRAIN_SECONDS, PAUSE_SECONDS
from splitplane.runtime.environment import SettingsError, folder, required
from splitplane.runtime.gateway.proxies import Proxies


@dataclass(frozen=True, slots=True)
class Settings:
    """Ports are 8080 and 9000 in pods; other values exist for several gateways on one address in tests."""

    namespace: str
    pipeline: str
    tier: str
    pod_name: str
    pod_ip: str
    route_table: str
    state_dir: Path
    peers: str = ""
    """The pipeline whose stages serve requests beside this one's own, and that certificates name instead of it."""
    proxies: Proxies = field(default_factory=Proxies)
    http_port: int = 8080
    grpc_port: int = 9000
    tls_dir: Path | None = None
    """Where this pod's certificate lies; without it, stages are called in clear text."""
    client_tokens_dir: Path | None = None
    """Where the tokens lie that clients must show one of; without it, none is asked for."""
    client_tls_dir: Path | None = None
    """Where the certificate lies that clients are shown, and the authorities of theirs; without it, clients talk in
    clear text. With it REST is served at ``https_port``, and ``http_port`` takes no requests for the model."""
    https_port: int = 8443
    kserve_metrics: bool = False
    """Whether the time of requests is also told under KServe's name."""
    drain_pause_seconds: float = PAUSE_SECONDS
    drain_seconds: float = DRAIN_SECONDS

    def described(self) -> dict[str, str]:
        """What tells this pod from others in a trace, by OpenTelemetry's names."""
        return {
            "service.namespace": self.namespace, "service.instance.id": self.pod_name,
            "splitplane.pipeline": self.pipeline, "splitplane.tier": self.tier,
        }  # fmt: skip

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises ``SettingsError`` naming what is missing."""
        values = required(
            environment, "NAMESPACE", "PIPELINE", "TIER", "POD_NAME", "POD_IP", "ROUTE_TABLE", "STATE_DIR",
            given_by="the gateway's Deployment gives them to its pods",
        )  # fmt: skip
        return cls(
            namespace=values["NAMESPACE"],
            pipeline=values["PIPELINE"],
            tier=values["TIER"],
            pod_name=values["POD_NAME"],
            pod_ip=values["POD_IP"],
            route_table=values["ROUTE_TABLE"],
            state_dir=Path(values["STATE_DIR"]),
            peers=environment.get("SPLITPLANE_PEERS", ""),
            tls_dir=folder(environment, "TLS_DIR"),
            client_tokens_dir=folder(environment, "CLIENT_TOKENS_DIR"),
            client_tls_dir=folder(environment, "CLIENT_TLS_DIR"),
            proxies=_proxies(environment.get("SPLITPLANE_TRUSTED_PROXIES", "")),
            kserve_metrics=environment.get("SPLITPLANE_KSERVE_METRICS") == "true",
        )


def _proxies(text: str) -> Proxies:
    try:
        return Proxies(text.split(",") if text else ())
    except ValueError as error:
        raise SettingsError(f"SPLITPLANE_TRUSTED_PROXIES: {error}") from error
