"""The defence that a stage carries out on what it hands to a tier that is not trusted."""

import json
import secrets
from collections.abc import Mapping

import torch

from splitplane.domain.defences import NONE, Defence
from splitplane.model.defending import defend


class Shield:
    """Adds noise, or drops elements, before tensors are encoded for one of ``tiers``.

    Its randomness begins anew in each process, from the system's: noise that can be foreseen can be taken off.
    """

    def __init__(self, defence: Defence = NONE, tiers: frozenset[str] = frozenset()) -> None:
        self._defence, self._tiers = defence, tiers
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))

    @classmethod
    def from_json(cls, text: str) -> "Shield":
        """Read ``SPLITPLANE_DEFENCE``; empty is none. Raises ``ValueError``."""
        if not text:
            return cls()
        data = json.loads(text)
        return cls(Defence.from_dict(data), frozenset(str(tier) for tier in data.get("tiers", ())))

    def covers(self, tier: str) -> bool:
        """Whether what goes to this tier is defended."""
        return bool(self._defence) and tier in self._tiers

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return defend(tensors, self._defence, self._generator)
