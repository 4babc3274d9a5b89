"""When it pays to compute several samples at once: the rule that stages learn by, and what a profile says of it."""

from splitplane.domain.profiles import DeviceProfile

PAYS = 0.85
"""A larger batch must take at most so much of the time per sample that the smaller one takes."""

MISSES = 2
"""So many sizes in a row that do not pay end the search: kernels are not equally good at all."""

BATCH_SHARE = 0.25
"""What one batch may take of the latency limit: a request waits for one and runs in the next, on each of two stages."""


def paying_samples(device: DeviceProfile, first: int, last: int, *, most: int, within_seconds: float | None) -> int:
    """The batch at which, as measured, a sample of segments ``[first, last)`` takes the least, a power of two.

    At most ``most``, and no batch that takes longer than ``within_seconds``; 1 where nothing larger was measured.
    """
    best, seconds = 1, device.range_seconds(first, last)
    for timing in sorted(device.timings, key=lambda timing: timing.batch):
        if timing.threads != device.threads or not 1 < timing.batch <= most:
            continue
        whole = timing.prefix_seconds[last] - timing.prefix_seconds[first]
        if within_seconds is not None and whole > within_seconds:
            break
        if 0 < whole / timing.batch <= PAYS * seconds:
            best, seconds = timing.batch, whole / timing.batch
    return 1 << (best.bit_length() - 1)
