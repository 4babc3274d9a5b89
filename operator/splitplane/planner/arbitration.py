"""Who of many pipelines gets how much of nodes that cannot hold what all would choose (docs/planner.md).

Priorities are settled from the highest down, each over what the ones before left; these keep what they got, on other
nodes where that leaves more. Within one, a mixed integer programme (HiGHS) chooses an offer for each claim; its choice
is put on real nodes, what does not fit there is mended greedily, and the greedy answer stands in where it is better or
time is up. How far the answer can be from the best is part of it. But for that time limit, equal arguments give equal
answers.
"""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints
from splitplane.planner.claims import Claim, Need, Room
from splitplane.planner.packing import Packing, Placed

TIME_LIMIT_SECONDS = 1.0
_LEAST_SECONDS = 0.05
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Class:
    """Claims of one priority as columns over their offers, "nothing" included as each claim's last.

    ``replicas[o, k]`` counts what offer ``o`` takes of need ``k``. Claim ``c`` has the offers ``[starts[c],
    starts[c + 1])``. ``held`` is what runs, an offer by claim: "nothing" where none of its offers does. ``mends`` tells
    which offers mend a limit that what runs breaks now. ``seated``: the first claim stands for what higher priorities
    got, has one offer, and without that no choice is worth anything.
    """

    starts: Ints
    worth: Array
    replicas: Ints
    held: Ints
    mends: Bools
    seated: bool = False


@dataclass(frozen=True, slots=True)
class Bound:
    """What a solver chose of a class: an offer (row) by claim, how many replicas of a need go to which nodes, a value
    that no choice exceeds, and whether it was ``stopped`` as time was up."""

    chosen: Ints
    places: tuple[tuple[int, Ints, int], ...]
    value: float
    stopped: bool = False


Solver = Callable[[Class, Packing, float], Bound | None]
"""Chooses for one class, given what is free and how many seconds there are; ``None`` where it found nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whose answer was taken for the claims of one priority, and the gap of that alone: ``held`` (what runs, and what
    has room beside it), ``greedy``, ``solver``, or ``seating``: the solver's, for which higher priorities stand
    on other nodes.

    Where a solver was ``stopped`` by the time limit, another run with equal arguments may answer otherwise.
    """

    priority: int
    by: str
    gap: float
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """``chosen`` is each claim's offer by number (one past the last: none), ``nodes`` the names of the nodes by tier.

    ``granted`` is how many replicas each may have by tier: those of its offer, and what has room beside all others' of
    what runs, of its first wish, and of what was granted before: its own gates take or leave these.
    ``gap`` is how much more all might be worth at most, relative to what they are worth now: at most this much is lost,
    the claims of each priority taking what those of higher ones left; where time did not suffice to look at other nodes
    for these, beside where they stand.
    ``answers`` tells of each priority who answered.
    """

    chosen: tuple[int, ...]
    nodes: tuple[dict[str, tuple[str, ...]], ...]
    gap: float
    answers: tuple[Answer, ...] = ()
    granted: tuple[dict[str, int], ...] = ()


def arbitrate(
    claims: Sequence[Claim], rooms: Sequence[Room], solver: Solver | None, *, seconds: float = TIME_LIMIT_SECONDS
) -> Settlement:
    """Settle claims on rooms. Without a solver the answer is the greedy one, whose gap is to everybody's first wish."""
    deadline = time.monotonic() + seconds
    needs = list(dict.fromkeys(need for claim in claims for need in claim.needs.values()))
    packing = Packing(rooms, needs)
    whole = packing.free.copy()
    chosen = [len(claim.offers) for claim in claims]
    placed: list[list[Placed]] = [[] for _ in claims]
    bound = value = 0.0
    answers = []
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        members = [number for number, claim in enumerate(claims) if claim.priority == priority]
        columns = _columns([claims[number] for number in members], needs)
        most = float(sum(part.max() for part in np.split(columns.worth, columns.starts[1:-1])))
        seats = [each for where in placed for each in where]
        columns = _beside(seats, columns)
        by, best, within, stopped = _settle(columns, packing, whole, seats, most, solver if rooms else None, deadline)
        bound, value = bound + within, value + best.value
        answers.append(Answer(priority, by, _gap(within, best.value), stopped))
        if seats:
            _seat(placed, best.placed[0])
        for place, number in enumerate(members, start=bool(seats)):
            chosen[number] = int(best.chosen[place] - columns.starts[place])
            placed[number] = best.placed[place]
    by_need = {need: number for number, need in enumerate(needs)}
    granted = _granted(claims, chosen, packing, by_need)
    names = [room.name for room in rooms]
    nodes = tuple(
        {
            tier: tuple(names[node] for each in where if each.need == by_need[need] for node in each.nodes)
            for tier, need in claim.needs.items()
        }
        for claim, where in zip(claims, placed, strict=True)
    )
    return Settlement(tuple(chosen), nodes, _gap(bound, value), tuple(answers), granted)


def _settle(
    columns: Class, packing: Packing, whole: Array, seats: Sequence[Placed], most: float, solver: Solver | None,
    deadline: float,
) -> tuple[str, "_Filled", float, bool]:  # fmt: skip
    """Whose answer one class takes, which leaves the packing as it makes it, the value that none exceeds (``most`` is
    that of everybody's best), and whether a solver was stopped. ``whole`` is what is free where nobody stands."""
    before = packing.free.copy()
    answer_of = {}
    if bool((columns.held < columns.starts[1:] - 1).any()):
        # What runs is left only for what is worth more: no answer of a solver within its gap moves anything.
        answer_of["held"] = _Fill(columns, packing, seats).run(held=True)
        if seats and answer_of["held"].value < columns.worth[columns.held].sum() - _SAME:
            packing.free[:] = whole
            again = _Fill(columns, packing).run(held=True)
            answer_of["held"] = max(answer_of["held"], again, key=lambda each: each.value)
        packing.free[:] = before
    answer_of["greedy"] = _Fill(columns, packing, seats).run()
    # Beside where higher priorities stand, and then wherever these might: that takes longer, and may find nothing.
    tries = [("solver", _without_first(columns) if seats else columns, before, seats, 1.0)]
    tries += [("seating", columns, whole, [], 0.5)] if seats else []
    within, stopped = most, False
    for name, asked, free, where, share in tries:
        if solver is None or max(each.value for each in answer_of.values()) >= most - _SAME:
            break
        packing.free[:] = free
        found = solver(asked, packing, max(_LEAST_SECONDS, share * (deadline - time.monotonic())))
        stopped |= found is None or found.stopped
        if found is not None:
            if name == "solver" or not found.stopped:
                within = min(most, found.value)
            answer_of[name] = _Fill(columns, packing, where).run(found)
    by = max(answer_of, key=lambda name: answer_of[name].value - _SAME * (name != "held"))
    packing.free[:] = answer_of[by].free
    return by, _Fill(columns, packing).mended(answer_of[by]), within, stopped


def _without_first(columns: Class) -> Class:
    """The columns where the first claim asks for nothing more, as it stands already."""
    replicas = columns.replicas.copy()
    replicas[0] = 0
    return replace(columns, replicas=replicas)


def _beside(seats: Sequence[Placed], columns: Class) -> Class:
    """The columns with what claims of higher priorities got, in sum, as a first claim of one offer: it may stand on
    other nodes, where that leaves more for these."""
    if not seats:
        return columns
    total = np.zeros((1, columns.replicas.shape[1]), dtype=np.int64)
    for each in seats:
        total[0, each.need] += len(each.nodes)
    return Class(
        np.concatenate([[0], columns.starts + 1]),
        np.concatenate([[0.0], columns.worth]),
        np.concatenate([total, columns.replicas]),
        np.concatenate([[0], columns.held + 1]),
        np.concatenate([[False], columns.mends]),
        seated=True,
    )


def _seat(placed: list[list[Placed]], seats: Sequence[Placed]) -> None:
    """Tell those that hold something on which of the ``seats`` they stand."""
    nodes: dict[int, list[int]] = {}
    for each in seats:
        nodes.setdefault(each.need, []).extend(each.nodes)
    for number, where in enumerate(placed):
        placed[number] = [Placed(each.need, tuple(nodes[each.need].pop() for _ in each.nodes)) for each in where]


def _granted(
    claims: Sequence[Claim], chosen: Sequence[int], packing: Packing, by_need: Mapping[Need, int]
) -> tuple[dict[str, int], ...]:
    """What each may have: its offer, and what still has room of what runs, then of first wishes, then of what was
    granted before, so that wishes that come and go change no grants. Higher priorities come first."""
    granted = []
    for claim, number in zip(claims, chosen, strict=True):
        offer = claim.offers[number].replicas if number < len(claim.offers) else {}
        granted.append({tier: offer.get(tier, 0) for tier in claim.needs})
    order = sorted(range(len(claims)), key=lambda place: -claims[place].priority)
    running = [(place, offer.replicas) for place in order for offer in claims[place].offers if offer.held]
    wished = [(place, claims[place].offers[0].replicas) for place in order if claims[place].offers]
    before = [(place, claims[place].before) for place in order]
    for place, replicas in (*running, *wished, *before):
        for tier, need in ((tier, by_need[need]) for tier, need in claims[place].needs.items()):
            count = replicas.get(tier, 0)
            if count > granted[place][tier]:
                room = packing.take_most(need, count - granted[place][tier], np.flatnonzero(packing.may[need]))
                granted[place][tier] += len(room.nodes)
    return tuple(granted)


def _gap(bound: float, value: float) -> float:
    return max(0.0, bound - value) / max(1.0, abs(value))


def _columns(claims: Sequence[Claim], needs: Sequence[Need]) -> Class:
    by_need = {need: number for number, need in enumerate(needs)}
    starts: list[int] = [0]
    worth: list[float] = []
    held: list[int] = []
    mends: list[bool] = []
    rows: list[tuple[int, int, int]] = []
    for claim in claims:
        for number in range(len(claim.offers) + 1):
            offer = claim.offers[number].replicas if number < len(claim.offers) else {}
            rows += [(len(worth), by_need[claim.needs[tier]], count) for tier, count in offer.items() if count]
            worth.append(claim.worth(number))
            mends.append(number < len(claim.offers) and claim.offers[number].mends)
        running = (starts[-1] + number for number, offer in enumerate(claim.offers) if offer.held)
        held.append(next(running, len(worth) - 1))
        starts.append(len(worth))
    replicas = np.zeros((len(worth), len(needs)), dtype=np.int64)
    for offer_row, need, count in rows:
        replicas[offer_row, need] += count
    return Class(np.array(starts), np.array(worth), replicas, np.array(held), np.array(mends))


@dataclass(frozen=True, slots=True)
class _Filled:
    chosen: Ints
    placed: list[list[Placed]]
    free: Array
    value: float


class _Fill:
    """Claims of one class put on nodes one by one, the most worth for the least share of a resource first.

    ``seats`` are where the first claim, if it is ``seated``, has its offer already.
    """

    def __init__(self, columns: Class, packing: Packing, seats: Sequence[Placed] = ()) -> None:
        self.columns, self.packing = columns, packing
        self.size = columns.replicas @ packing.shares()
        self.chosen = columns.starts[1:] - 1
        self.placed: list[list[Placed]] = [[] for _ in self.chosen]
        if seats:
            self.placed[0] = list(seats)

    def run(self, wanted: Bound | None = None, *, held: bool = False) -> _Filled:
        """Fill up from nothing, or from a choice or what is held, as far as that fits."""
        if held:
            order = np.argsort(-self.size[self.columns.held], kind="stable").tolist()
            for claim in sorted(order, key=lambda claim: claim == 0) if self.columns.seated else order:
                if not self.placed[claim]:
                    self._move(claim, int(self.columns.held[claim]))
        if wanted is not None:
            self._begin(wanted)
        queue = [step for claim in range(len(self.chosen)) for step in self._steps(claim)]
        heapq.heapify(queue)
        while queue:
            _, claim, offer, before = heapq.heappop(queue)
            if self.chosen[claim] == before and self._move(claim, offer):
                for step in self._steps(claim):
                    heapq.heappush(queue, step)
        return self._filled()

    def mended(self, filled: _Filled) -> _Filled:
        """The same once those that would stay at what runs, though that breaks a limit now, have what mends it, where
        all of that has room. What runs counts for more than it is worth now (``offers``), so that nobody gives way for
        another's breach within the band; free room needs no such care, and lower priorities come after."""
        self.chosen, self.placed = filled.chosen, filled.placed
        needy = np.logical_or.reduceat(self.columns.mends, self.columns.starts[:-1])
        for claim in np.flatnonzero(needy & (self.chosen == self.columns.held)).tolist():
            start, end = self.columns.starts[claim : claim + 2].tolist()
            able = start + np.flatnonzero(self.columns.mends[start:end])
            for offer in able[np.argsort(-self.columns.worth[able], kind="stable")].tolist():
                if self._move(claim, offer):
                    break
        return self._filled()

    def _filled(self) -> _Filled:
        lost = self.columns.seated and not self.placed[0]
        worth = -np.inf if lost else float(self.columns.worth[self.chosen].sum())
        return _Filled(self.chosen, self.placed, self.packing.free.copy(), worth)

    def _begin(self, wanted: Bound) -> None:
        """Put the choice of a solver on nodes: the largest replicas first, then claims where all their replicas are."""
        pool: dict[int, list[int]] = {}
        shares = self.packing.shares()
        for need, nodes, count in sorted(wanted.places, key=lambda place: -shares[place[0]]):
            pool.setdefault(need, []).extend(self.packing.take_most(need, count, nodes).nodes)
        left_over = []
        order = np.argsort(self.size[wanted.chosen], kind="stable").tolist()
        for claim in sorted(order, key=lambda claim: claim != 0) if self.columns.seated else order:
            if self.placed[claim]:
                continue
            asked = self.columns.replicas[wanted.chosen[claim]]
            needs = np.flatnonzero(asked).tolist()
            if all(len(pool.get(need, ())) >= asked[need] for need in needs):
                self.placed[claim] = [
                    Placed(need, tuple(pool[need].pop() for _ in range(asked[need]))) for need in needs
                ]
                self.chosen[claim] = wanted.chosen[claim]
            else:
                left_over.append(claim)
        for need, nodes_left in pool.items():
            self.packing.give(Placed(need, tuple(nodes_left)))
        for claim in left_over:
            self._move(claim, int(wanted.chosen[claim]))

    def _steps(self, claim: int) -> list[tuple[float, int, int, int]]:
        """What a claim could move up to: (minus worth gained by share taken, claim, offer, from which offer)."""
        now = int(self.chosen[claim])
        offers = np.arange(self.columns.starts[claim], self.columns.starts[claim + 1])
        gained = self.columns.worth[offers] - self.columns.worth[now]
        taken = np.maximum(self.size[offers] - self.size[now], 1e-9)
        return [
            (-float(more / share), claim, int(offer), now)
            for offer, more, share in zip(offers, gained, taken, strict=True)
            if more > 1e-12
        ]

    def _move(self, claim: int, offer: int) -> bool:
        """Put a claim on another offer if that fits."""
        old = self.placed[claim]
        for each in old:
            self.packing.give(each)
        fresh: list[Placed] = []
        for need in np.flatnonzero(self.columns.replicas[offer]):
            found = self.packing.take(int(need), int(self.columns.replicas[offer, need]))
            if found is None:
                for each in fresh:
                    self.packing.give(each)
                for each in old:
                    self.packing.put(each)
                return False
            fresh.append(found)
        self.chosen[claim], self.placed[claim] = offer, fresh
        return True
