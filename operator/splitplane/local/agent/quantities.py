"""Kubernetes quantities and instants as numbers.

The client library has a parser, but importing it brings in the whole synchronous client (tens of MB in each agent).
"""

import re
from datetime import UTC, datetime
from decimal import Decimal

_FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i))?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: dict[str, int] = {prefix + "i": 1024 ** (n + 1) for n, prefix in enumerate("KMGTPE")}


def parse(quantity: str | int | float) -> Decimal:
    """The value of a quantity such as ``500m``, ``1.5Gi`` or ``1e3``. Raises ValueError for anything else."""
    match = _FORM.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a Kubernetes quantity, such as 500m, 2 or 1.5Gi")
    number, exponent, suffix = str(match[1]), match[2], match[3]
    if exponent:
        return Decimal(number + exponent)
    if suffix in _BINARY:
        return Decimal(number) * Decimal(_BINARY[suffix])
    return Decimal(number).scaleb(_DECIMAL[suffix]) if suffix else Decimal(number)


def timestamp(seconds: float | None) -> str | None:
    """An instant (seconds since the epoch) as Kubernetes writes metav1.Time: RFC 3339, UTC, whole seconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(seconds: float) -> str:
    """An instant as metav1.MicroTime: RFC 3339, UTC, microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def instant(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time as Kubernetes writes it."""
    return None if text is None else datetime.fromisoformat(text).timestamp()
