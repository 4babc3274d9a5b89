"""The one place where a slower device is emulated, on embedded clusters only.

The embedded node agent sets ``SPLITPLANE_SPEED_FACTOR``; stages call :func:`pace` after each range they run, and
profile jobs multiply what they measure. Sleeping uses no core, so several emulated devices on one machine behave as
devices of their own would.
"""

import math
import os
import time
from functools import lru_cache

from splitplane.runtime.environment import SettingsError

VARIABLE = "SPLITPLANE_SPEED_FACTOR"


@lru_cache(maxsize=1)
def speed_factor() -> float:
    """How many times slower than this machine the node claims to be; 1.0 on real nodes.

    Raises ``SettingsError`` when the variable is not a finite number of at least 1.
    """
    text = os.environ.get(VARIABLE) or "1"
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor >= 1.0):
        raise SettingsError(f"{VARIABLE} is {text!r}; it must be a number of at least 1")
    return factor


def pace(compute_seconds: float, elapsed_seconds: float) -> float:
    """Sleep as much longer as the emulated device would have computed; returns the seconds slept.

    ``compute_seconds`` is the core's time that a range took and ``elapsed_seconds`` the wall's, which is longer where
    other emulated devices wanted the same core: a device of its own would not have waited for them. Does nothing on
    real nodes.
    """
    factor = speed_factor()
    more = factor * compute_seconds - elapsed_seconds
    if factor == 1.0 or more <= 0.0:
        return 0.0
    started = time.perf_counter()
    time.sleep(more)
    return time.perf_counter() - started
