"""What is done to tensors before they leave the trusted tiers, so that less can be told from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Defence:
    """Gaussian ``noise`` in standard deviations of each tensor of a sample, then a share of elements ``dropout``
    that is set to zero; the others grow, so that the mean stays."""

    noise: float = 0.0
    dropout: float = 0.0

    def __bool__(self) -> bool:
        return self.noise > 0.0 or self.dropout > 0.0

    def to_dict(self) -> dict[str, float]:
        return {"noise": self.noise, "dropout": self.dropout}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Defence":
        """Raises ``ValueError`` for what is no defence."""
        try:
            found = cls(float(data["noise"]), float(data["dropout"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"a defence has numbers noise and dropout: {error}") from error
        if not (found.noise >= 0.0 and 0.0 <= found.dropout < 1.0):
            raise ValueError(f"noise must not be negative, dropout lie from 0 to below 1, not {data}")
        return found


NONE = Defence()
