"""Replicas that the sites of a pipeline share on one tier, and which stages run on them."""

from dataclasses import dataclass
from typing import Protocol


class Resident(Protocol):
    """What pods of a stage keep, and on which tier: a plan's stage, or the key of a Deployment."""

    @property
    def tier(self) -> str: ...

    @property
    def resident_first(self) -> int: ...

    @property
    def resident_last(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Pool:
    """So many replicas, each with cuts ``[first, last)`` resident. ``batched`` is how requests come that they were
    planned to compute together: at this cut, with this codec. Stages put no others into one batch."""

    first: int
    last: int
    replicas: int
    batched: tuple[int, str] | None = None

    def has(self, stage: Resident, shared: str) -> bool:
        """Whether a stage runs on these replicas, which are on the tier ``shared``."""
        return (stage.tier, stage.resident_first, stage.resident_last) == (shared, self.first, self.last)
