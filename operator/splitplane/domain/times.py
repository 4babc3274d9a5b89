"""Instants as Kubernetes writes them, and as seconds since the epoch."""

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """The instant as metav1.Time: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(seconds: float) -> str:
    """The instant as metav1.MicroTime: RFC 3339, UTC, microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def instant(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; ``None`` for an absent or empty one."""
    return datetime.fromisoformat(text).timestamp() if text else None
