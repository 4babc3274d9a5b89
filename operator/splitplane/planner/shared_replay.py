"""What pipelines or sites share, as JSON: why a pool was sized so, and nodes granted so, can be made again later.

As a decision's arguments (``planner.replay``), each on one line. A profile, and what replicas ask of nodes, are the
same for many and stand there once.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitplane.domain.profiles import Profile
from splitplane.domain.snapshots import Policy, Snapshot
from splitplane.planner.arbitration import Settlement, Solver, arbitrate
from splitplane.planner.claims import Claim, Need, Offer, Room
from splitplane.planner.pooling import Pooling, Sized, explain_size
from splitplane.planner.replay import from_dict, to_dict


@dataclass(frozen=True, slots=True)
class Sizing:
    """The arguments of ``size_pool``, and what came of them."""

    snapshots: Mapping[str, Snapshot]
    policy: Policy
    now: float
    shared: str
    before: Pooling
    after: Pooling

    def again(self) -> Sized:
        """``after``, made anew: bit for bit the same, and with the reasons."""
        return explain_size(self.snapshots, self.policy, self.now, shared=self.shared, before=self.before)


@dataclass(frozen=True, slots=True)
class Settling:
    """The arguments of ``arbitrate``, and what came of them."""

    claims: tuple[Claim, ...]
    rooms: tuple[Room, ...]
    settled: Settlement

    def again(self, solver: Solver | None) -> Settlement:
        """``settled``, made anew: the same, unless the solver was ``stopped`` (``Answer``) in either run."""
        return arbitrate(self.claims, self.rooms, solver)


def dump_sizing(sizing: Sizing) -> str:
    """One line of JSON. Floats keep all their digits, and sites their order."""
    profiles: list[Profile] = []
    sites = []
    for name, snapshot in sizing.snapshots.items():
        if snapshot.profile not in profiles:
            profiles.append(snapshot.profile)
        sites.append([name, profiles.index(snapshot.profile), _fields(snapshot, "profile")])
    return _line({**_fields(sizing, "snapshots"), "profiles": to_dict(profiles), "sites": sites})


def load_sizing(line: str) -> Sizing:
    """The inverse of ``dump_sizing``. Raises ``ValueError`` for anything else."""
    try:
        data = json.loads(line)
        profiles = data.pop("profiles")
        snapshots = {name: {**rest, "profile": profiles[number]} for name, number, rest in data.pop("sites")}
        return from_dict(Sizing, {**data, "snapshots": snapshots})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a recorded sizing of a pool: {error!r}") from error


def dump_settling(claims: Sequence[Claim], rooms: Sequence[Room], settled: Settlement) -> str:
    """One line of JSON. Floats keep all their digits, and claims their order."""
    needs = list(dict.fromkeys(need for claim in claims for need in claim.needs.values()))
    number = {need: place for place, need in enumerate(needs)}
    rows = [
        {**_fields(claim, "needs"), "needs": [[tier, number[need]] for tier, need in claim.needs.items()]}
        for claim in claims
    ]
    return _line({"claims": rows, "needs": to_dict(needs), "rooms": to_dict(rooms), "settled": to_dict(settled)})


def load_settling(line: str) -> Settling:
    """The inverse of ``dump_settling``. Raises ``ValueError`` for anything else."""
    try:
        data = json.loads(line)
        needs = [from_dict(Need, each) for each in data["needs"]]
        claims = tuple(
            Claim(
                each["pipeline"], each["priority"], {tier: needs[number] for tier, number in each["needs"]},
                from_dict(tuple[Offer, ...], each["offers"]), each.get("before", {}),
            )
            for each in data["claims"]
        )  # fmt: skip
        rooms = from_dict(tuple[Room, ...], data["rooms"])
        return Settling(claims, rooms, from_dict(Settlement, data["settled"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a recorded settlement: {error!r}") from error


def _fields(value: Any, without: str) -> dict[str, Any]:
    return {
        field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value) if field.name != without
    }


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
