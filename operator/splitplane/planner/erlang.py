"""How likely it is to find all servers busy where who does waits: Erlang's C, read from a table."""

from functools import lru_cache

import numpy as np

from splitplane.planner.arrays import Array

_STEPS = 1024


def waiting_chance(servers: Array, load: Array) -> Array:
    """Probability that a Poisson arrival waits (Erlang's C), for a load below 1, read from a table."""
    most = int(servers.max(initial=1.0))
    values, slopes = _erlang_c_table(-(-most // 16) * 16)
    place = load * _STEPS
    index = place.astype(np.int64)
    place -= index
    index += servers.astype(np.int64) * (_STEPS + 1)
    chance = slopes.take(index)
    chance *= place
    chance += values.take(index)
    return chance


@lru_cache(maxsize=8)
def _erlang_c_table(most: int) -> tuple[Array, Array]:
    """Erlang's C for 1 to ``most`` servers at evenly spaced loads, and its slopes, by the recursion of Erlang's B."""
    load = np.linspace(0.0, 1.0, _STEPS + 1)
    table = np.ones((most + 1, _STEPS + 1))
    for servers in range(1, most + 1):
        offered = load * servers
        blocking = np.ones_like(load)
        for count in range(1, servers + 1):
            blocking = offered * blocking / (count + offered * blocking)
        table[servers] = blocking / (1.0 - load * (1.0 - blocking))
    slopes = np.diff(table, axis=1, append=1.0)
    return table.ravel(), slopes.ravel()
