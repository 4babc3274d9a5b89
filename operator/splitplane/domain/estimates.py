"""What a device class would take of a model that was not measured on it: an estimate, until a measurement is there.

Floating-point operations and bytes moved are counted from shapes, so they are known of every device class. What an
operation and a byte cost there is told by other models that were measured on the class; where there is none, the class
is taken to be as fast as the slowest one on which this model was measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from splitplane.domain.profiles import CodecTimes, DeviceProfile, Profile, Work


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds for a floating-point operation, and for a byte read or written; not both are 0."""

    seconds_per_flop: float
    seconds_per_byte: float

    def seconds(self, work: Work) -> float:
        """What a segment takes, as if arithmetic and memory never overlapped."""
        return self.seconds_per_flop * work.flops + self.seconds_per_byte * work.moved_bytes


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated device, and what it is told from, for people to read."""

    device: DeviceProfile
    basis: str


def estimate(profile: Profile, device_class: str, others: Iterable[Profile]) -> Estimate | None:
    """What ``profile``'s model takes on a device class that it has no measurement of.

    ``others`` are profiles of other models. ``None`` where this model was measured nowhere: memory and overhead of a
    pod are known of no class then.
    """
    if not profile.devices:
        return None
    slowest = max(profile.devices.values(), key=lambda device: device.prefix_seconds[-1])
    references = [other for other in others if device_class in other.devices and len(other.work) == other.segments]
    rates = fit_rates(references, device_class)
    if rates is None or len(profile.work) != profile.segments:
        device = replace(slowest, device_class=device_class, timings=())
        return Estimate(device, f"the times measured on device class {slowest.device_class}, the slowest one known")
    measured = [other.devices[device_class] for other in references]
    device = DeviceProfile(
        device_class=device_class,
        prefix_seconds=tuple(accumulate((rates.seconds(work) for work in profile.work), initial=0.0)),
        time_cv=max(device.time_cv for device in measured),
        overhead_seconds=max(device.overhead_seconds for device in measured),
        codec_times=_slowest_codecs(measured),
        base_memory_bytes=max(device.base_memory_bytes for device in (slowest, *measured)),
        threads=max(device.threads for device in measured),
    )
    models = "another model" if len(references) == 1 else f"{len(references)} other models"
    return Estimate(device, f"counted operations and bytes, at the rates of {models} measured there")


def fit_rates(references: Sequence[Profile], device_class: str) -> Rates | None:
    """Rates by which the segments of these models take nearest to what was measured on the class, in least squares.

    Neither rate is negative. ``None`` where nothing was counted.
    """
    flops_flops = flops_bytes = bytes_bytes = flops_time = bytes_time = 0.0
    for profile in references:
        device = profile.devices[device_class]
        whole = device.prefix_seconds[-1] or 1.0  # a large model counts as much as a small one
        for segment, work in enumerate(profile.work):
            seconds = device.range_seconds(segment, segment + 1) / whole
            flops, moved = work.flops / whole, work.moved_bytes / whole
            flops_flops += flops * flops
            flops_bytes += flops * moved
            bytes_bytes += moved * moved
            flops_time += flops * seconds
            bytes_time += moved * seconds
    determinant = flops_flops * bytes_bytes - flops_bytes**2
    if determinant > 1e-9 * flops_flops * bytes_bytes:
        per_flop = (flops_time * bytes_bytes - bytes_time * flops_bytes) / determinant
        per_byte = (bytes_time * flops_flops - flops_time * flops_bytes) / determinant
        if per_flop >= 0.0 and per_byte >= 0.0:
            return Rates(per_flop, per_byte)
    # One of them alone: the one that leaves the smaller square.
    alone = []
    if flops_flops > 0.0:
        alone.append((flops_time**2 / flops_flops, Rates(flops_time / flops_flops, 0.0)))
    if bytes_bytes > 0.0:
        alone.append((bytes_time**2 / bytes_bytes, Rates(0.0, bytes_time / bytes_bytes)))
    explained, rates = max(alone, key=lambda each: each[0], default=(0.0, None))
    return rates if explained > 0.0 else None


def _slowest_codecs(devices: Sequence[DeviceProfile]) -> dict[str, CodecTimes]:
    found: dict[str, CodecTimes] = {}
    for device in devices:
        for codec, times in device.codec_times.items():
            known = found.get(codec, times)
            found[codec] = CodecTimes(
                max(known.encode_seconds_per_byte, times.encode_seconds_per_byte),
                max(known.decode_seconds_per_byte, times.decode_seconds_per_byte),
            )
    return found
