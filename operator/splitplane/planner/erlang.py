"""How likely it is to find all servers busy where who does waits: Erlang's C, read from a table."""

import math
from functools import lru_cache

import numpy as np

from splitplane.planner.arrays import Array

MOST_SERVERS = 256
"""Rows of the largest table. More servers are looked up there."""

_STEPS = 1024
_LEAST = 16


def waiting_chance(servers: Array, load: Array) -> Array:
    """Probability that a Poisson arrival waits (Erlang's C), for a load below 1, read from a table.

    Of more than ``MOST_SERVERS`` it is that of so many with as much to spare in proportion to the square root of
    their number, on which alone it depends for many servers (Halfin and Whitt 1981).
    """
    most = int(servers.max(initial=1.0))
    if most > MOST_SERVERS:
        spare = (1.0 - load) * np.sqrt(np.maximum(1.0, servers / MOST_SERVERS))
        servers, load, most = np.minimum(servers, MOST_SERVERS), np.maximum(0.0, 1.0 - spare), MOST_SERVERS
    values, slopes = _erlang_c_table(max(_LEAST, 1 << math.ceil(math.log2(most))))
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
    offered = load * np.arange(most + 1.0)[:, None]
    for count in range(1, most + 1):  # of all who have that many servers or more
        blocking = table[count:]
        blocking *= offered[count:]
        blocking /= count + blocking
    blocking = table[1:]
    table[1:] = blocking / (1.0 - load * (1.0 - blocking))
    slopes = np.diff(table, axis=1, append=1.0)
    return table.ravel(), slopes.ravel()
