"""What is kept of one profile between calls of ``plan``: a cache that its owner may drop at any time.

It holds values that depend on its keys alone, so having it or not changes no decision.
"""

from collections.abc import Hashable
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from splitplane.domain.profiles import DeviceProfile, Profile
from splitplane.planner.arrays import Array, Ints
from splitplane.planner.options import CutTable, Options, crossing_options, cut_table
from splitplane.planner.replay import digest

_MOST_PLANS = 6_000
"""Plans in all results of one profile: about 2 MB."""


class Kept:
    """The options of a profile, and the latest results of searches among them. Threads may share it."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.table: CutTable = cut_table(profile)
        self._weights: Ints = np.concatenate([[0], np.cumsum(profile.weight_bytes, dtype=np.int64)])
        self._twice = _counted_twice(profile) if profile.tied else None
        self._options: dict[tuple[str, ...], Options] = {}
        self._codec_seconds: dict[str, tuple[Array, Array]] = {}
        self._batch_prefix: dict[str, Array | None] = {}
        self._results: dict[Hashable, tuple[Any, int]] = {}
        self._variants: dict[str, Kept] = {}
        self._plans = 0
        self._changing = Lock()

    @cached_property
    def digest(self) -> str:
        """A name of the profile."""
        return digest(self._profile)

    def named(self, value: Hashable) -> str:
        """A name of any value (``digest``), which takes as long as half a decision the first time."""
        name: str | None = self.result(("name", value))
        if name is None:
            name = digest(value)
            self.keep(("name", value), name, plans=1)
        return name

    def fits(self, profile: Profile) -> bool:
        return profile is self._profile or profile == self._profile

    def of(self, variant: str, profile: Profile) -> "Kept":
        """The same of a variant of the model, by its name."""
        found = self._variants.get(variant)
        if found is None or not found.fits(profile):
            found = self._variants[variant] = Kept(profile)
        return found

    def options(self, codecs: tuple[str, ...]) -> Options:
        """The crossings that these codecs allow."""
        if codecs not in self._options:
            self._options[codecs] = crossing_options(self._profile, self.table, codecs)
        return self._options[codecs]

    def held_bytes(self, first: Ints, last: Ints) -> Ints:
        """``Profile.held_bytes`` of many ranges at once."""
        held: Ints = self._weights[last] - self._weights[first]
        return held if self._twice is None else held - self._twice[first, last]

    def codec_seconds(self, device: DeviceProfile) -> tuple[Array, Array]:
        """Seconds that a device of the profile takes to encode and to decode one sample, by codec and cut."""
        if device.device_class not in self._codec_seconds:
            times = [device.codec_times.get(codec) for codec in self.table.codecs]
            full = self.table.sent[self.table.codecs.index("fp32")]
            encode = np.array([time.encode_seconds_per_byte if time else 0.0 for time in times])
            decode = np.array([time.decode_seconds_per_byte if time else 0.0 for time in times])
            self._codec_seconds[device.device_class] = np.outer(encode, full), np.outer(decode, full)
        return self._codec_seconds[device.device_class]

    def batch_prefix(self, device: DeviceProfile) -> Array | None:
        """Seconds that each further sample of a batch takes in segments ``[0, i)``: the mean of what the batches say
        that were measured. ``None`` where there are none."""
        if device.device_class not in self._batch_prefix:
            alone = np.array(device.prefix_seconds)
            slopes = [
                (np.array(timing.prefix_seconds) - alone) / (timing.batch - 1)
                for timing in device.timings
                if timing.threads == device.threads and timing.batch > 1
            ]
            self._batch_prefix[device.device_class] = np.mean(slopes, axis=0) if slopes else None
        return self._batch_prefix[device.device_class]

    def result(self, key: Hashable) -> Any:
        """What ``keep`` was given for an equal key lately; ``None`` if nothing."""
        with self._changing:
            found = self._results.pop(key, None)
            if found is None:
                return None
            self._results[key] = found  # what is asked for stays longest
            return found[0]

    def keep(self, key: Hashable, result: Any, *, plans: int) -> None:
        """Remember the result of a search, which holds so many plans, in place of those not asked for the longest."""
        with self._changing:
            _, before = self._results.pop(key, (None, 0))
            self._results[key] = result, plans
            self._plans += plans - before
            while len(self._results) > 1 and self._plans > _MOST_PLANS:
                _, gone = self._results.pop(next(iter(self._results)))
                self._plans -= gone


def _counted_twice(profile: Profile) -> Ints:
    """Bytes by which the sum of the segments' weights exceeds what a range (first, last) holds."""
    twice: Ints = np.zeros((profile.segments + 1,) * 2, dtype=np.int64)
    for tied in profile.tied:
        twice[: tied.earlier + 1, tied.later + 1 :] += tied.bytes
    return twice
