"""The multiple-choice knapsack behind planning sites: one option for each site, within what the pool bears.

Penalties come first, as a weight that no saving outweighs. A price for each unit of load gives a bound on every choice,
and a choice (the Lagrangian relaxation). Between the two lies little, so a dynamic programme closes the gap: what an
option costs more than the best at that price can be afforded at few sites.
"""

from dataclasses import dataclass

import numpy as np

from splitplane.planner.arrays import Array, Bools, Ints

PENALTY = 1e4
"""Money per hour that a broken limit counts as: all sites together save less by the least of penalties, a tenth."""

MOST_MONEY = 500.0
"""Money per hour that is at stake at most: amounts in small currencies are scaled down to that."""

_SLACK = 1e-9
_BISECTIONS = 40
_MOST_STATES = 20_000
_PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 95)])


@dataclass(frozen=True, slots=True)
class Menu:
    """Options of all sites as columns, those of one site together: its number, money per hour, penalty, load on the
    pool, replicas on the shared tier outside the pool, and a label. Every site has one at least."""

    site: Ints
    cost: Array
    penalty: Array
    load: Array
    taken: Array
    label: Ints

    @property
    def value(self) -> Array:
        return self.cost + PENALTY * self.penalty

    @property
    def starts(self) -> Ints:
        return np.flatnonzero(np.diff(self.site, prepend=-1))

    def where(self, places: Bools | Ints) -> "Menu":
        return Menu(*(getattr(self, name)[places] for name in self.__slots__))

    def thinned(self) -> "Menu":
        """Sorted by site, without options that another of the site, with nothing outside the pool, beats or equals."""
        order = np.lexsort((self.label, self.taken, self.load, self.value, self.site))
        menu = self.where(order)
        # Each site is put below the one before it, so that one running minimum serves all.
        lowered = menu.load - menu.site * (float(menu.load.max(initial=0.0)) + 1.0)
        inside = np.where(menu.taken > 0.0, np.inf, lowered)
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], inside[:-1]]))
        first = np.diff(menu.site, prepend=-1) != 0
        return menu.where(first | (lowered < lowest - _SLACK))


@dataclass(frozen=True, slots=True)
class Packed:
    """The label of each site's option, the sum of their values, and how much less the best choice may come to."""

    labels: tuple[int, ...]
    value: float
    gap: float


class Relaxed:
    """What becomes of the options if load on the pool has a price, for many prices at once."""

    def __init__(self, menu: Menu) -> None:
        self.menu = menu
        scale = float(np.ptp(menu.cost)) / max(float(menu.load.max(initial=0.0)), _SLACK) or 1.0
        self._prices = scale * _PRICES
        weighed = menu.value + self._prices[:, None] * menu.load
        self._sums = np.minimum.reduceat(weighed, menu.starts, axis=1).sum(axis=1)

    def bound(self, load: float) -> float:
        """A value that no choice within ``load`` is below: each price gives one."""
        return float((self._sums - self._prices * load).max())

    def price(self, load: float) -> float:
        """Nearly the price whose bound is the best for this load."""
        place = int((self._sums - self._prices * load).argmax())
        low, high = self._prices[max(0, place - 1)], self._prices[min(place + 1, len(self._prices) - 1)]
        value, loads, starts = self.menu.value, self.menu.load, self.menu.starts
        found, best = float(self._prices[place]), -np.inf
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            weighed = value + middle * loads
            lowest = np.minimum.reduceat(weighed, starts)
            if (bound := lowest.sum() - middle * load) > best:
                best, found = bound, float(middle)
            equal = weighed <= np.repeat(lowest, _counts(starts, len(value)))
            used = np.minimum.reduceat(np.where(equal, loads, np.inf), starts).sum()
            low, high = (middle, high) if used > load else (low, middle)
        return found


def pack(menu: Menu, *, load: float, taken: float) -> Packed:
    """The choice of the least value within load and replicas. Each site has an option that asks for neither."""
    price = Relaxed(menu).price(load)
    weighed = menu.value + price * menu.load
    lowest = np.minimum.reduceat(weighed, menu.starts)
    extra = weighed - np.repeat(lowest, _counts(menu.starts, len(menu.site)))
    floor = float(lowest.sum()) - price * load
    best = _rounded(menu, load, taken)
    spare = float(menu.value[best].sum()) - floor
    gap = spare
    if spare > _SLACK:
        found, whole = _closed(menu, extra, spare, load, taken)
        if found is not None and menu.value[found].sum() < menu.value[best].sum():
            best = found
        gap = 0.0 if whole else float(menu.value[best].sum()) - floor
    return Packed(tuple(menu.label[best].tolist()), float(menu.value[best].sum()), gap if gap > _SLACK else 0.0)


def _rounded(menu: Menu, load: float, taken: float) -> Ints:
    """A choice that fits: by the lowest price of load at which the best options do."""
    places = (
        np.flatnonzero(menu.taken <= 0.0) if menu.taken[_dearest(menu)].sum() > taken else np.arange(len(menu.site))
    )
    part = menu.where(places)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        if part.load[_best(part, high)].sum() <= load + _SLACK:
            break
        low, high = high, 4.0 * high
    if part.load[_best(part, low)].sum() <= load + _SLACK:
        high = low
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if part.load[_best(part, middle)].sum() <= load + _SLACK else (middle, high)
    return places[_best(part, high)]


def _best(menu: Menu, price: float) -> Ints:
    """The best option of each site if load has this price; of those as good the one of the least load."""
    order = np.lexsort((menu.load, menu.value + price * menu.load, menu.site))
    return order[menu.starts]


def _dearest(menu: Menu) -> Ints:
    """The option of each site that takes the most replicas outside the pool."""
    order = np.lexsort((-menu.taken, menu.site))
    return order[menu.starts]


def _closed(menu: Menu, extra: Array, spare: float, load: float, taken: float) -> tuple[Ints | None, bool]:
    """The choice whose value is the least, ``extra`` by option being at most ``spare`` in sum; whether none was missed.

    States after each site are (load, value, extra, replicas outside): of those with as many replicas one goes that
    another beats in load and value.
    """
    counted = menu.taken[_dearest(menu)].sum() > taken
    loads, values, extras, outside = (np.zeros(1) for _ in range(4))
    steps: list[tuple[Ints, Ints]] = []
    whole = True
    for start, count in zip(menu.starts, _counts(menu.starts, len(menu.site)), strict=True):
        options = start + np.flatnonzero(extra[start : start + count] <= spare + _SLACK)
        state, option = (grid.ravel() for grid in np.meshgrid(np.arange(len(loads)), options, indexing="ij"))
        loads, values = loads[state] + menu.load[option], values[state] + menu.value[option]
        extras = extras[state] + extra[option]
        outside = outside[state] + menu.taken[option]
        able = np.flatnonzero((loads <= load + _SLACK) & (extras <= spare + _SLACK) & (outside <= taken))
        group = outside[able] if counted else np.zeros(len(able))
        able = able[np.lexsort((loads[able], values[able], group))]
        group = outside[able] if counted else np.zeros(len(able))
        lowered = loads[able] - group * (load + 1.0)
        before = np.minimum.accumulate(np.concatenate([[np.inf], lowered[:-1]]))
        able = able[lowered < before - _SLACK]
        if len(able) > _MOST_STATES:
            able, whole = able[np.argsort(extras[able], kind="stable")[:_MOST_STATES]], False
        loads, values, extras, outside = loads[able], values[able], extras[able], outside[able]
        steps.append((state[able], option[able]))
    if not len(loads):
        return None, whole
    found, place = [], int(values.argmin())
    for state, option in reversed(steps):
        found.append(int(option[place]))
        place = int(state[place])
    return np.array(found[::-1]), whole


def _counts(starts: Ints, length: int) -> Ints:
    return np.diff(np.append(starts, length))
