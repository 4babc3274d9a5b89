"""What was measured of one model: its cuts, and the time and memory of its segments on each device class.

Cut ``i`` lies before segment ``i``; a model of ``n`` segments has ``n + 1`` cuts, cut 0 being its input and
cut ``n`` its output. A range ``[first, last)`` is written by the cuts that bound it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

BASE_CODECS = ("fp32", "fp16", "bf16", "int8", "int4")
"""Ways to write an element on the wire, in the order of falling fidelity."""
ZSTD = "+zstd"
CODECS = tuple(codec for base in BASE_CODECS for codec in (base, base + ZSTD))
"""Wire codecs, in the order of falling fidelity: each base codec, and the same with Zstandard on top, which loses no
more."""


def base_codec(codec: str) -> str:
    """What a codec loses and leaks is what its base does."""
    return codec.removesuffix(ZSTD)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that crosses a cut. ``shape`` leaves the batch dimension out; ``datatype`` is the OIP's name.

    ``free`` names the dimensions that may differ from request to request (``tokens``, ``tokens//2``), with ``None`` for
    fixed ones; for these ``shape`` holds the size of the example that the model was traced with, by which bytes are
    counted. It is empty where all dimensions are fixed.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    free: tuple[str | None, ...] = ()

    @property
    def declared_shape(self) -> tuple[int, ...]:
        """The shape as the Open Inference Protocol declares it: -1 is any size; the batch comes first."""
        free = self.free or (None,) * len(self.shape)
        return (-1, *(size if name is None else -1 for size, name in zip(self.shape, free, strict=True)))


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where the graph can be divided.

    ``wire_bytes`` maps a codec to the bytes per sample on the wire (header excluded); those of codecs that compress are
    what was measured, or the most that they can be.
    ``schema_hash`` identifies names, dtypes and shapes; stages with different hashes refuse each other.
    ``accuracy_loss`` and ``leakage`` map a codec to what crossing here with it was measured to cost in accuracy and to
    give away of the input, both from 0 to 1; a codec without an entry has not been measured.
    """

    index: int
    name: str
    tensors: tuple[TensorSpec, ...]
    wire_bytes: Mapping[str, int]
    schema_hash: str
    accuracy_loss: Mapping[str, float] = field(default_factory=dict)
    leakage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CodecTimes:
    """Seconds per fp32 byte of payload to encode and to decode, on one thread of a device class."""

    encode_seconds_per_byte: float
    decode_seconds_per_byte: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Prefix times of another batch size or thread count than a device's own; for the whole batch, not a sample."""

    batch: int
    threads: int
    prefix_seconds: tuple[float, ...]
    time_cv: float


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Times of one device class, for a batch of one sample.

    ``prefix_seconds[i]`` is the median time of segments ``[0, i)``, run as a whole; ``prefix_seconds[0] == 0``.
    ``time_cv`` is the coefficient of variation of a range's time. ``overhead_seconds`` is what a stage adds to
    each request besides compute and codecs (receive, deserialise, respond). All on ``threads`` compute threads;
    ``timings`` holds other batch sizes and thread counts.
    """

    device_class: str
    prefix_seconds: tuple[float, ...]
    time_cv: float
    overhead_seconds: float
    codec_times: Mapping[str, CodecTimes]
    base_memory_bytes: int
    threads: int = 1
    timings: tuple[Timing, ...] = ()

    def range_seconds(self, first: int, last: int) -> float:
        """Median seconds of segments ``[first, last)``; never negative, though prefixes are measured apart."""
        return max(0.0, self.prefix_seconds[last] - self.prefix_seconds[first])


@dataclass(frozen=True, slots=True)
class Work:
    """What one sample asks of any device: floating-point operations, and bytes read from and written to memory.

    Both are counted from shapes, so they are known of a device class on which nothing was measured yet.
    """

    flops: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class Tied:
    """Weights that two segments share and none between them has: a range that holds both holds them once.

    Of weights that more segments share there is one for each two neighbours among these.
    """

    earlier: int
    later: int
    bytes: int


def held_bytes(weight_bytes: Sequence[int], tied: Iterable[Tied], first: int, last: int) -> int:
    """Bytes of the weights of segments ``[first, last)``, tied ones counted once."""
    twice = sum(each.bytes for each in tied if first <= each.earlier and each.later < last)
    return sum(weight_bytes[first:last]) - twice


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything the planner knows of a model.

    ``weight_bytes[i]`` and ``work[i]`` belong to segment ``i``; weights that several segments share count in each of
    them, and ``tied`` tells which (older profiles do not). ``activation_bytes`` is the peak of live activations
    per sample. ``fingerprint`` covers graph, weights digest, torch and library versions.
    """

    fingerprint: str
    cuts: tuple[Cut, ...]
    weight_bytes: tuple[int, ...]
    activation_bytes: int
    devices: Mapping[str, DeviceProfile] = field(default_factory=dict)
    work: tuple[Work, ...] = ()
    tied: tuple[Tied, ...] = ()

    @property
    def segments(self) -> int:
        return len(self.cuts) - 1

    def held_bytes(self, first: int, last: int) -> int:
        """Bytes of the weights of segments ``[first, last)``, tied ones counted once."""
        return held_bytes(self.weight_bytes, self.tied, first, last)

    def resident_bytes(self, device_class: str, first: int, last: int) -> int:
        """Memory of a pod that keeps ``[first, last)`` resident: its runtime, weights and activations."""
        base = self.devices[device_class].base_memory_bytes
        return base + self.held_bytes(first, last) + self.activation_bytes

    def most_samples(self, device_class: str, first: int, last: int, memory_bytes: int) -> int:
        """How many samples such a pod may compute at once within this memory; at least one."""
        spare = memory_bytes - self.resident_bytes(device_class, first, last)
        return 1 + max(0, spare) // max(1, self.activation_bytes)
