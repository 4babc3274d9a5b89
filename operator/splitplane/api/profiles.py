"""``ModelProfile``: what the profile jobs measured of one model, in whole units, and its way to and from the domain."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from splitplane.api.defences import CutDefence
from splitplane.api.fields import (
    Codec,
    Count,
    DecimalString,
    Metadata,
    Model,
    Name,
    Share,
    at_most,
    between,
    decimal_string,
    keyed,
    ordered,
    rule,
    rules,
)
from splitplane.api.tensors import Datatype, Tensors
from splitplane.domain.profiles import CODECS, CodecTimes, Cut, DeviceProfile, Profile, TensorSpec, Tied, Timing, Work

KIND = "ModelProfile"
PLURAL = "modelprofiles"

_Text = Annotated[str, at_most(256)]
_MAX_CUTS = 1025
MAX_ATTACKED = 256
_MAX_TIED = 4096
_Small = Annotated[int, between(1, 4096)]


class ProfiledModel(Model):
    """Which model this is, whatever pipeline serves it."""

    factory: Annotated[str, at_most(253)]
    weights_sha256: Annotated[str, at_most(64)]


class CutTensor(Model):
    """A tensor that crosses a cut; the shape is that of one sample, without the batch."""

    name: _Text
    datatype: Datatype
    sample_shape: Annotated[tuple[Annotated[int, between(0, 2**31 - 1)], ...], ordered(most=8)]


class WireSize(Model):
    """Bytes of one sample on the wire, header excluded; of codecs that compress, as measured or the most it can be."""

    codec: Codec
    bytes: Count


class CodecShare(Model):
    """A share from 0 to 1, with a codec."""

    codec: Codec
    share: Share


class AccuracyMeasurement(Model):
    """How ``accuracyLoss`` was measured: what it stays below with 95 % confidence, on so many inputs."""

    metric: _Text
    """What was judged by, such as ``top1``."""
    samples: Count
    whole: Share | None = None
    """The unsplit model's own share by the metric, against the labels; absent where it was judged without."""
    calibration_sha256: Annotated[str, at_most(64)] = ""
    """SHA-256 of the file with these inputs; measured anew where ``spec.model.calibration`` names another."""


class AttackedCut(Model):
    """What the better of the decoders got where a cut was crossed with a codec."""

    cut: Annotated[int, between(0, _MAX_CUTS)]
    codec: Codec
    score: Share


class LeakMeasurement(Model):
    """How ``leakage`` was measured: by an attack, so a stronger attacker may see more."""

    attack: _Text
    score: _Text
    """What the attack's result is scored by, such as SSIM."""
    samples: Count
    input_control: DecimalString
    """The score of the attack on the input itself: about 1, or the attack was too weak to tell anything."""
    shuffled_control: DecimalString
    """The score of the attack on what belongs to other inputs: what a guess without looking is worth."""
    shuffled_skill: DecimalString | None = None
    """How much of what a blind guess lacks of 1 that attack made up: about 0. Older versions did not tell."""
    calibration_sha256: Annotated[str, at_most(64)] = ""
    """SHA-256 of the file with these inputs; measured anew where ``spec.model.calibration`` names another."""
    attacked: Annotated[tuple[AttackedCut, ...], ordered(most=MAX_ATTACKED)] = ()
    """What was attacked; all else counts as leaking what a shallower cut or a finer codec leaks."""


class ProfiledCut(Model):
    """A place where the model can be divided."""

    name: _Text
    tensors: Annotated[tuple[CutTensor, ...], ordered(least=1, most=64)]
    wire_bytes: Annotated[tuple[WireSize, ...], keyed("codec", least=1, most=len(CODECS))]
    schema_hash: Annotated[str, at_most(64)]
    """Identifies names, datatypes and shapes; stages with different hashes refuse each other."""
    accuracy_loss: Annotated[tuple[CodecShare, ...], keyed("codec", most=len(CODECS))] = ()
    """What crossing here with a codec costs in accuracy at most, on calibration inputs."""
    leakage: Annotated[tuple[CodecShare, ...], keyed("codec", most=len(CODECS))] = ()
    """What an attack reconstructs of the input from what crosses here, a lower bound (``splitplane model leak``)."""


class ProfiledSegment(Model):
    """The part between two neighbouring cuts."""

    name: _Text
    weight_bytes: Count
    flops: Count = 0
    """Floating-point operations for one sample, counted from shapes."""
    moved_bytes: Count = 0
    """Bytes that its operations read and write for one sample, counted from shapes."""


class TiedWeights(Model):
    """Weights that two segments share and none between them has: a pod that holds both holds them once."""

    earlier: Annotated[int, between(0, _MAX_CUTS)]
    """The first segment is 0."""
    later: Annotated[int, between(0, _MAX_CUTS)]
    bytes: Count


class CodecCost(Model):
    """Time of a codec on one thread, per fp32 byte of payload."""

    codec: Codec
    encode_nanoseconds_per_byte: DecimalString
    decode_nanoseconds_per_byte: DecimalString


class ProfiledTiming(Model):
    """Times of another batch size or thread count, for the whole batch."""

    batch: _Small
    threads: _Small
    prefix_nanoseconds: Annotated[tuple[Count, ...], ordered(least=2, most=_MAX_CUTS)]
    time_cv: DecimalString


class ProfiledDevice(Model):
    """Times of one device class, for a batch of one sample."""

    device_class: Name
    prefix_nanoseconds: Annotated[tuple[Count, ...], ordered(least=2, most=_MAX_CUTS)]
    """Median time of the segments before each cut, run as a whole; the first is 0."""
    time_cv: DecimalString
    """Coefficient of variation of a range's time."""
    overhead_nanoseconds: Count
    """What a stage adds to each request besides compute and codecs."""
    codecs: Annotated[tuple[CodecCost, ...], keyed("codec", most=len(CODECS))] = ()
    base_memory_bytes: Count
    """Resident memory of a pod before it loads any segment."""
    threads: _Small = 1
    """Compute threads that the times hold for."""
    timings: Annotated[tuple[ProfiledTiming, ...], ordered(most=16)] = ()
    """The same for other batch sizes and thread counts, as far as the time for measuring allowed."""


class ModelProfileSpec(Model):
    """Measurements, written by the operator from the results of profile jobs."""

    model_config = rules(
        rule("self.cuts.size() == self.segments.size() + 1", "must be one more than segments", field=".cuts"),
        rule(
            "!has(self.devices) || self.devices.all(d, d.prefixNanoseconds.size() == self.cuts.size())",
            "every prefixNanoseconds must have one entry for each cut",
            field=".devices",
        ),
    )

    fingerprint: Annotated[str, at_most(128)]
    """Covers graph, weights digest, torch and library versions."""
    model: ProfiledModel
    inputs: Tensors
    outputs: Tensors
    cuts: Annotated[tuple[ProfiledCut, ...], ordered(least=2, most=_MAX_CUTS)]
    """Cut 0 is the model's input, the last its output."""
    segments: Annotated[tuple[ProfiledSegment, ...], ordered(least=1, most=_MAX_CUTS - 1)]
    tied_weights: Annotated[tuple[TiedWeights, ...], ordered(most=_MAX_TIED)] = ()
    """What ``weightBytes`` of several segments count alike. Older versions did not tell."""
    activation_bytes: Count
    """Peak of live activations for one sample."""
    devices: Annotated[tuple[ProfiledDevice, ...], keyed("deviceClass", most=16)] = ()
    accuracy_measurement: AccuracyMeasurement | None = None
    leak_measurement: LeakMeasurement | None = None
    defence: CutDefence | None = None
    """With which accuracy loss and leak hold (``objectives.defence``)."""


class ModelProfile(Model):
    """Time, memory and bytes of a model's parts, shared by the namespace's pipelines with the same fingerprint."""

    metadata: Metadata
    spec: ModelProfileSpec


def share_string(share: float) -> str:
    """A share rounded up to four places: a limit that the true one breaks is not kept."""
    return decimal_string(math.ceil(min(1.0, share) * 1e4 - 1e-6) / 1e4, digits=4)


def codec_shares(shares: Mapping[str, float]) -> list[dict[str, str]]:
    """Shares by codec as the resource has them."""
    return [{"codec": codec, "share": share_string(share)} for codec, share in sorted(shares.items())]


def to_profile(spec: ModelProfileSpec) -> Profile:
    """The planner's view of a profile, in seconds and bytes."""
    return Profile(
        fingerprint=spec.fingerprint,
        cuts=tuple(
            Cut(
                index=index,
                name=cut.name,
                tensors=tuple(TensorSpec(t.name, t.datatype, tuple(t.sample_shape)) for t in cut.tensors),
                wire_bytes={size.codec: size.bytes for size in cut.wire_bytes},
                schema_hash=cut.schema_hash,
                accuracy_loss={each.codec: float(each.share) for each in cut.accuracy_loss},
                leakage={each.codec: float(each.share) for each in cut.leakage},
            )
            for index, cut in enumerate(spec.cuts)
        ),
        weight_bytes=tuple(segment.weight_bytes for segment in spec.segments),
        activation_bytes=spec.activation_bytes,
        devices={device.device_class: to_device(device) for device in spec.devices},
        work=tuple(Work(segment.flops, segment.moved_bytes) for segment in spec.segments),
        tied=tuple(Tied(each.earlier, each.later, each.bytes) for each in spec.tied_weights),
    )


def to_device(device: ProfiledDevice) -> DeviceProfile:
    """One device class's times in seconds."""
    return DeviceProfile(
        device_class=device.device_class,
        prefix_seconds=_seconds(device.prefix_nanoseconds),
        time_cv=float(device.time_cv),
        overhead_seconds=device.overhead_nanoseconds / 1e9,
        codec_times={
            cost.codec: CodecTimes(
                encode_seconds_per_byte=float(cost.encode_nanoseconds_per_byte) / 1e9,
                decode_seconds_per_byte=float(cost.decode_nanoseconds_per_byte) / 1e9,
            )
            for cost in device.codecs
        },
        base_memory_bytes=device.base_memory_bytes,
        threads=device.threads,
        timings=tuple(
            Timing(timing.batch, timing.threads, _seconds(timing.prefix_nanoseconds), float(timing.time_cv))
            for timing in device.timings
        ),
    )


def _seconds(nanoseconds: Sequence[int]) -> tuple[float, ...]:
    return tuple(each / 1e9 for each in nanoseconds)


def _nanoseconds(seconds: Sequence[float]) -> list[int]:
    return [round(each * 1e9) for each in seconds]


def from_device(device: DeviceProfile) -> ProfiledDevice:
    """One device class's times in whole nanoseconds. Raises ``pydantic.ValidationError`` for an unknown codec."""
    return ProfiledDevice.model_validate(
        {
            "deviceClass": device.device_class,
            "prefixNanoseconds": _nanoseconds(device.prefix_seconds),
            "timeCv": decimal_string(device.time_cv),
            "overheadNanoseconds": round(device.overhead_seconds * 1e9),
            "codecs": [
                {
                    "codec": codec,
                    "encodeNanosecondsPerByte": decimal_string(times.encode_seconds_per_byte * 1e9, digits=9),
                    "decodeNanosecondsPerByte": decimal_string(times.decode_seconds_per_byte * 1e9, digits=9),
                }
                for codec, times in sorted(device.codec_times.items())
            ],
            "baseMemoryBytes": device.base_memory_bytes,
            "threads": device.threads,
            "timings": [
                {
                    "batch": timing.batch,
                    "threads": timing.threads,
                    "prefixNanoseconds": _nanoseconds(timing.prefix_seconds),
                    "timeCv": decimal_string(timing.time_cv),
                }
                for timing in device.timings
            ],
        }
    )


def from_profile(
    profile: Profile,
    *,
    factory: str,
    weights_sha256: str,
    inputs: Tensors,
    outputs: Tensors,
    segment_names: Sequence[str],
) -> ModelProfileSpec:
    """The resource's form of a profile. Raises ``ValueError`` unless every segment has a name.

    A profile without counted work has zeros for it. Of very many tied weights the smallest count more than once.
    """
    if len(segment_names) != profile.segments:
        raise ValueError(f"{profile.segments} segments need as many names, not {len(segment_names)}")
    tied = sorted(profile.tied, key=lambda each: each.bytes, reverse=True)[:_MAX_TIED]
    return ModelProfileSpec.model_validate(
        {
            "fingerprint": profile.fingerprint,
            "model": {"factory": factory, "weightsSha256": weights_sha256},
            "inputs": [tensor.dump() for tensor in inputs],
            "outputs": [tensor.dump() for tensor in outputs],
            "cuts": [
                {
                    "name": cut.name,
                    "tensors": [
                        {"name": t.name, "datatype": t.datatype, "sampleShape": list(t.shape)} for t in cut.tensors
                    ],
                    "wireBytes": [{"codec": codec, "bytes": size} for codec, size in sorted(cut.wire_bytes.items())],
                    "schemaHash": cut.schema_hash,
                    "accuracyLoss": codec_shares(cut.accuracy_loss),
                    "leakage": codec_shares(cut.leakage),
                }
                for cut in profile.cuts
            ],
            "segments": [
                {"name": name, "weightBytes": size, "flops": work.flops, "movedBytes": work.moved_bytes}
                for name, size, work in zip(
                    segment_names, profile.weight_bytes, profile.work or [Work(0, 0)] * profile.segments, strict=True
                )
            ],
            "tiedWeights": [{"earlier": each.earlier, "later": each.later, "bytes": each.bytes} for each in tied],
            "activationBytes": profile.activation_bytes,
            "devices": [from_device(device).dump() for _, device in sorted(profile.devices.items())],
        }
    )
