"""What the chart tells the operator, read once from the environment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitplane.controller.objects import MACHINE_LABEL
from splitplane.domain.leaving import REQUEST_SECONDS

_ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - outside a pod there is no address of one's own
OFF, SECRETS, AUTHORITY = "Off", "Secrets", "Authority"
MTLS = (OFF, SECRETS, AUTHORITY)
"""Mutual TLS: none; by Secrets that somebody else (cert-manager) keeps; by certificates of the operator's authority."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Configuration of the operator's process. Times are in seconds."""

    prometheus_url: str
    runtime_image: str
    operator_image: str
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets by which these two images are pulled, looked for in each pipeline's own namespace."""
    run_as_user: int | None = 65532
    """User and group of pods; None leaves them to the platform. The default is what the images have."""
    pod_ip: str = _ANY_ADDRESS
    http_port: int = 8080
    window: int = 60
    demand_window: int = 30
    tick: float = 1.0
    prepare_deadline: float = 120.0
    """How long a plan's new pods may take to be admitted by the gateway before the switch is rolled back."""
    drain_deadline: float = REQUEST_SECONDS + 30.0
    """How long an old plan's pods stay for requests in flight: their time, and until every gateway follows."""
    mtls: str = OFF
    """Whether pods of a pipeline talk over mutual TLS, and who issues the certificates: one of :data:`MTLS`."""
    tracing_endpoint: str = ""
    """Where gateways and stages send spans (OTLP over HTTP); empty: nowhere."""
    tracing_ratio: str = "1"
    """Share of the requests without a caller's trace that are traced."""
    kserve_metrics: bool = False
    """Whether gateways tell the time of requests also under KServe's name."""
    namespace: str = ""
    """The operator's own."""
    profile_deadline: int = 900
    """A profile job is stopped after this time."""
    machine_label: str = MACHINE_LABEL
    """Label of nodes with the name of the physical machine they are on: models are measured side by side on two only
    where both have it, with different values."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Raises ``ValueError`` that names the variable that is missing or wrong."""
        try:
            return cls(
                prometheus_url=environment["SPLITPLANE_PROMETHEUS_URL"],
                runtime_image=environment["SPLITPLANE_RUNTIME_IMAGE"],
                operator_image=environment["SPLITPLANE_OPERATOR_IMAGE"],
                pull_secrets=tuple(environment.get("SPLITPLANE_IMAGE_PULL_SECRETS", "").split()),
                run_as_user=_user(environment.get("SPLITPLANE_RUN_AS_USER", "65532")),
                pod_ip=environment.get("SPLITPLANE_POD_IP", _ANY_ADDRESS),
                http_port=int(environment.get("SPLITPLANE_HTTP_PORT", "8080")),
                window=_seconds(environment, "SPLITPLANE_PROMETHEUS_WINDOW_SECONDS", 60),
                demand_window=_seconds(environment, "SPLITPLANE_DEMAND_WINDOW_SECONDS", 30),
                tracing_endpoint=environment.get("SPLITPLANE_TRACING_ENDPOINT", ""),
                tracing_ratio=environment.get("SPLITPLANE_TRACING_RATIO", "1"),
                kserve_metrics=environment.get("SPLITPLANE_KSERVE_METRICS") == "true",
                mtls=_one_of(environment, "SPLITPLANE_MTLS", MTLS),
                namespace=environment.get("SPLITPLANE_NAMESPACE", ""),
                machine_label=environment.get("SPLITPLANE_MACHINE_LABEL", MACHINE_LABEL),
            )
        except KeyError as error:
            raise ValueError(f"the variable {error.args[0]} is not set; the chart sets it") from error


def _user(text: str) -> int | None:
    if text == "any":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"SPLITPLANE_RUN_AS_USER must be a number above 0 or 'any', not {text!r}")
    return int(text)


def _one_of(environment: Mapping[str, str], name: str, allowed: Sequence[str]) -> str:
    text = environment.get(name, allowed[0])
    if text not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {text!r}")
    return text


def _seconds(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal() or not 4 <= int(text) <= 3600:
        raise ValueError(f"{name} must be a whole number of seconds from 4 to 3600, not {text!r}")
    return int(text)
