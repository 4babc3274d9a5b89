"""Who is who in a pipeline, by the DNS name in a pod's certificate: both sides agree on it (docs/security.md)."""

GATEWAY, STAGE = "gateway", "stage"
ROLES = (GATEWAY, STAGE)
SUFFIX = "splitplane"


def peer_name(role: str, pipeline: str, namespace: str) -> str:
    """The DNS name of a pipeline's gateway or stages. It resolves to nothing: pods are called by address."""
    return f"{role}.{pipeline}.{namespace}.{SUFFIX}"
