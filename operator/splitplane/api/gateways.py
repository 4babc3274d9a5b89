"""The gateway of a pipeline: where it runs, whom it believes, and whom it lets in."""

from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from splitplane.api.fields import Model, TierName, between, distinct, rule, rules
from splitplane.api.pods import LocalReference, Resources
from splitplane.api.routes import MOST_GATEWAYS


def _network(text: str) -> str:
    return str(ip_network(text))


Network = Annotated[
    str,
    AfterValidator(_network),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 49,
            "x-kubernetes-validations": [
                rule("isCIDR(self) && cidr(self) == cidr(self).masked()", "must be a network, such as 10.0.0.0/8")
            ],
        }
    ),
]


class ClientAuth(Model):
    """What clients must show. With both, a certificate and a token."""

    model_config = rules(
        rule(
            "has(self.bearerTokens) || has(self.certificates)",
            "name a Secret in bearerTokens, certificates or both; or leave clientAuth out to let everybody in",
        )
    )

    bearer_tokens: LocalReference | None = None
    """A Secret each of whose keys holds a token. Clients send one of them as ``Authorization: Bearer``."""
    certificates: LocalReference | None = None
    """A Secret with ``tls.crt`` and ``tls.key``, which the gateway shows, and ``ca.crt``, the authorities of clients'
    certificates. Clients then use ports 8443 (REST) and 9000 (gRPC), both over TLS."""


class GatewaySpec(Model):
    """Where requests come in."""

    tier: TierName
    """The tier whose nodes run the gateway."""
    replicas: Annotated[int, between(1, MOST_GATEWAYS)] = 1
    """With two or more, one that is restarted or lost leaves the others serving; they are spread over nodes."""
    trusted_proxies: Annotated[tuple[Network, ...], distinct(most=16)] = ()
    """Networks of the proxies before the gateway, such as an ingress. Who a request is from, so that clients share
    fairly, is then told by the ``X-Forwarded-For`` that they send; else it is the proxy."""
    client_auth: ClientAuth | None = None
    """Who may ask. Default: everybody who reaches the gateway, in clear text."""
    resources: Resources = Resources()
