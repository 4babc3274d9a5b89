"""Kubernetes quantities as numbers.

The client library has a parser, but importing it brings in the whole synchronous client: tens of MB in each node agent.
"""

import re
from decimal import Decimal

_FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i))?", re.ASCII)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: dict[str, int] = {prefix + "i": 1024 ** (n + 1) for n, prefix in enumerate("KMGTPE")}


def parse_quantity(quantity: str | int | float) -> Decimal:
    """The value of a quantity such as ``500m``, ``1.5Gi`` or ``1e3``. Raises ``ValueError`` for anything else."""
    match = _FORM.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a Kubernetes quantity, such as 2, 500m or 1.5Gi")
    number, exponent, suffix = str(match[1]), match[2], match[3]
    if exponent:
        return Decimal(number + exponent)
    if suffix in _BINARY:
        return Decimal(number) * Decimal(_BINARY[suffix])
    return Decimal(number).scaleb(_DECIMAL[suffix]) if suffix else Decimal(number)
