"""The arithmetic of an emulated link: when does a byte that arrives now leave the other end?"""

from dataclasses import dataclass, field

_SLACK_SECONDS = 0.010
"""How late a timer may fire while bytes are waiting before the rate suffers for it."""
_CHUNK_SECONDS = 0.004
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 1400, 65536


@dataclass(slots=True)
class Link:
    """One direction of a link, as the user set it. Changed in place, so that open connections see it."""

    rate: float | None = None
    """Bits per second; None is unlimited."""
    delay: float = 0.0
    """Seconds from one end to the other."""
    down: bool = False


@dataclass(slots=True)
class Bucket:
    """A token bucket that all connections of one direction of a link share, first come, first served."""

    link: Link
    _free_at: float = field(default=0.0)

    def chunk_bytes(self) -> int:
        """How much to take from a connection at once: short in time, so that connections take turns."""
        if self.link.rate is None:
            return _MAX_CHUNK_BYTES
        return int(min(max(self.link.rate / 8 * _CHUNK_SECONDS, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES))

    def departure(self, size: int, now: float, *, queued: bool) -> float:
        """Book ``size`` bytes; returns when the last of them has left this end of the link.

        Args:
            queued: the bytes were waiting for the link. Then it was busy until ``now``, and a timer that woke us late
                has not lowered the rate; bytes that meet an idle link get no such credit.
        """
        if self.link.rate is None:
            self._free_at = now
        else:
            idle_since = now - _SLACK_SECONDS if queued else now
            self._free_at = max(self._free_at, idle_since) + size * 8 / self.link.rate
        return max(self._free_at, now)
