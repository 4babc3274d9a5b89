"""Replicas on real nodes, as the scheduler would count requests: mutable room that is taken and given back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.claims import Need, Room

_SLACK = 1e-9
"""Undoes the rounding of sums such as 0.1 + 0.2."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Nodes (rows of the room) that replicas of one need stand on, one entry each."""

    need: int
    nodes: tuple[int, ...]


class Packing:
    """Nodes with what is left of them. ``asked[k]`` is what need ``k`` asks of a node and ``may[k]`` who takes it."""

    def __init__(self, rooms: Sequence[Room], needs: Sequence[Need]) -> None:
        resources = sorted({name for need in needs for name, _ in need.requests} | {"pods"})
        self.free: Array = np.array(
            [[room.free.get(name, np.inf if name == "pods" else 0.0) for name in resources] for room in rooms]
        ).reshape(len(rooms), len(resources))
        self.asked: Array = np.array(
            [[{"pods": 1.0, **dict(need.requests)}.get(name, 0.0) for name in resources] for need in needs]
        ).reshape(len(needs), len(resources))
        self.may: Bools = np.array([[room.name in need.nodes for room in rooms] for need in needs], dtype=np.bool_)
        self._whole = np.maximum(np.where(np.isfinite(self.free), self.free, 0.0).sum(axis=0), 1e-300)

    def shares(self) -> Array:
        """By need, the largest share of all that is free that one replica takes."""
        return np.asarray((self.asked / self._whole).max(axis=1, initial=0.0))

    def slots(self, need: int) -> Ints:
        """By node, how many replicas of a need it can take now."""
        asked = self.asked[need]
        some = asked > 0.0
        fit = np.floor(self.free[:, some] / asked[some] + _SLACK).min(axis=1, initial=1e9)
        return np.where(self.may[need], np.clip(fit, 0.0, 1e9), 0.0).astype(np.int64)

    def take(self, need: int, count: int) -> Placed | None:
        """Place ``count`` replicas, each where the least is left over; ``None``, and none taken, if some don't fit."""
        placed = self.take_most(need, count, np.flatnonzero(self.may[need]))
        if len(placed.nodes) == count:
            return placed
        self.give(placed)
        return None

    def take_most(self, need: int, count: int, among: Ints) -> Placed:
        """Place as many of ``count`` replicas as fit on the nodes ``among``."""
        nodes: list[int] = []
        asked = self.asked[need]
        some = np.flatnonzero(asked > 0.0)
        for _ in range(count):
            left = self.free[np.ix_(among, some)] - asked[some]
            able = (left >= -_SLACK * asked[some]).all(axis=1)
            if not able.any():
                break
            tight = np.where(able, (left / self._whole[some]).min(axis=1), np.inf)
            nodes.append(int(among[tight.argmin()]))
            self.free[nodes[-1]] -= asked
        return Placed(need, tuple(nodes))

    def put(self, placed: Placed) -> None:
        """Take again what was given back before: it is known to fit."""
        for node in placed.nodes:
            self.free[node] -= self.asked[placed.need]

    def give(self, placed: Placed) -> None:
        """Undo ``take``."""
        for node in placed.nodes:
            self.free[node] += self.asked[placed.need]
