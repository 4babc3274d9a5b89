"""What the pod's environment tells a stage (docs/architecture.md, "Pods")."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitplane.domain.leaving import DRAIN_SECONDS, PAUSE_SECONDS
from splitplane.runtime.environment import SettingsError, folder, required, threads
from splitplane.runtime.stage.shielding import Shield


@dataclass(frozen=True, slots=True)
class Settings:
    """Ports are 8080 and 9000 in pods; other values exist for several stages on one address in tests."""

    namespace: str
    pipeline: str
    tier: str
    pod_name: str
    pod_ip: str
    model: str
    resident_first: int
    resident_last: int
    fingerprint: str
    model_name: str = ""
    """What requests call the model, if not by the pipeline's name: at a site, by that of the user's pipeline."""
    peers: str = ""
    """The pipeline that certificates name, if not this one: at sites that share replicas, the user's."""
    threads: int = 1
    shield: Shield = field(default_factory=Shield)
    """What is done to tensors that go to tiers which are not trusted."""
    http_port: int = 8080
    grpc_port: int = 9000
    queue_capacity: int = 128
    """Requests that may wait for the compute worker; more are turned away at once."""
    tls_dir: Path | None = None
    """Where this pod's certificate lies; without it, calls are in clear text."""
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
        """Raises :class:`SettingsError` that names what is missing or malformed."""
        values = required(
            environment, "NAMESPACE", "PIPELINE", "TIER", "POD_NAME", "POD_IP", "MODEL", "RESIDENT", "FINGERPRINT",
            given_by="the stage's Deployment gives them to its pods",
        )  # fmt: skip
        first, last = _resident(values["RESIDENT"])
        return cls(
            namespace=values["NAMESPACE"],
            pipeline=values["PIPELINE"],
            tier=values["TIER"],
            pod_name=values["POD_NAME"],
            pod_ip=values["POD_IP"],
            model=values["MODEL"],
            resident_first=first,
            resident_last=last,
            fingerprint=values["FINGERPRINT"],
            model_name=_model_name(values["MODEL"]),
            peers=environment.get("SPLITPLANE_PEERS", ""),
            threads=threads(environment),
            shield=_shield(environment.get("SPLITPLANE_DEFENCE", "")),
            tls_dir=folder(environment, "TLS_DIR"),
        )


def _model_name(text: str) -> str:
    try:
        return str(json.loads(text)["name"])
    except (ValueError, KeyError, TypeError):
        return ""  # whoever loads the model says what is wrong with this


def _shield(text: str) -> Shield:
    try:
        return Shield.from_json(text)
    except ValueError as error:
        raise SettingsError(f"SPLITPLANE_DEFENCE is '{text}': {error}") from error


def _resident(text: str) -> tuple[int, int]:
    first, separator, last = text.partition(":")
    if not (separator and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise SettingsError(f"SPLITPLANE_RESIDENT is '{text}'; it must be two cuts, as in 0:3")
    return int(first), int(last)
