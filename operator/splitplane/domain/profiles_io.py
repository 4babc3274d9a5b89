"""The JSON that a profile job hands to the operator in its ConfigMap, written and read here.

Both sides use this module, so the form has one definition. It is plain data: no pickle, no class names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitplane.domain.profiles import CodecTimes, Cut, DeviceProfile, Profile, TensorSpec, Tied, Timing, Work

RESULT, PROGRESS = "result.json", "progress"
"""Keys of the ConfigMap: what was measured, and, until it is there, how far the measuring is, for people to read."""
FORMAT = 2
"""Raised when the form changes in a way that an older reader would misread."""


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What one profile job measured: a profile with exactly one device, and what else is known of the model.

    ``segment_names[i]`` is segment ``i`` as people know it (``conv2``, ``encoder.layer.3``). ``inputs`` and
    ``outputs`` leave the batch dimension out, as every :class:`TensorSpec` does.
    """

    model: str
    profile: Profile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    segment_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.profile.devices) != 1:
            raise ValueError(f"a profile result holds one device class, not {len(self.profile.devices)}")
        segments = self.profile.segments
        if not len(self.segment_names) == len(self.profile.weight_bytes) == len(self.profile.work) == segments:
            raise ValueError(f"a profile of {segments} segments needs {segments} names, weight sizes and work")
        prefixes = [self.device.prefix_seconds, *(timing.prefix_seconds for timing in self.device.timings)]
        if any(len(seconds) != segments + 1 for seconds in prefixes):
            raise ValueError(f"a profile of {segments + 1} cuts needs {segments + 1} prefix times")

    @property
    def device(self) -> DeviceProfile:
        """The one device that was measured."""
        return next(iter(self.profile.devices.values()))


def to_dict(result: ProfileResult) -> dict[str, Any]:
    """The result as JSON-ready data."""
    profile = result.profile
    return {
        "format": FORMAT,
        "model": result.model,
        "fingerprint": profile.fingerprint,
        "inputs": [_spec_to_dict(spec) for spec in result.inputs],
        "outputs": [_spec_to_dict(spec) for spec in result.outputs],
        "segments": [
            {"name": name, "weightBytes": weight, "flops": work.flops, "movedBytes": work.moved_bytes}
            for name, weight, work in zip(result.segment_names, profile.weight_bytes, profile.work, strict=True)
        ],
        "tied": [{"earlier": each.earlier, "later": each.later, "bytes": each.bytes} for each in profile.tied],
        "cuts": [
            {
                "name": cut.name,
                "tensors": [_spec_to_dict(spec) for spec in cut.tensors],
                "wireBytes": dict(cut.wire_bytes),
                "schemaHash": cut.schema_hash,
            }
            for cut in profile.cuts
        ],
        "activationBytes": profile.activation_bytes,
        "device": _device_to_dict(result.device),
    }


def from_dict(data: Mapping[str, Any]) -> ProfileResult:
    """Read what :func:`to_dict` wrote. Raises ``ValueError`` that names what is missing or wrong."""
    try:
        if data["format"] != FORMAT:
            raise ValueError(
                f"profile result has format {data['format']}, this version reads {FORMAT}: "
                "let operator and runtime image be of one release"
            )
        device = _device_from_dict(data["device"])
        return ProfileResult(
            model=str(data["model"]),
            inputs=tuple(_spec_from_dict(spec) for spec in data["inputs"]),
            outputs=tuple(_spec_from_dict(spec) for spec in data["outputs"]),
            segment_names=tuple(str(segment["name"]) for segment in data["segments"]),
            profile=Profile(
                fingerprint=str(data["fingerprint"]),
                cuts=tuple(
                    Cut(
                        index=index,
                        name=str(cut["name"]),
                        tensors=tuple(_spec_from_dict(spec) for spec in cut["tensors"]),
                        wire_bytes={str(codec): int(size) for codec, size in cut["wireBytes"].items()},
                        schema_hash=str(cut["schemaHash"]),
                    )
                    for index, cut in enumerate(data["cuts"])
                ),
                weight_bytes=tuple(int(segment["weightBytes"]) for segment in data["segments"]),
                activation_bytes=int(data["activationBytes"]),
                devices={device.device_class: device},
                work=tuple(Work(int(segment["flops"]), int(segment["movedBytes"])) for segment in data["segments"]),
                tied=tuple(
                    Tied(int(each["earlier"]), int(each["later"]), int(each["bytes"])) for each in data.get("tied", ())
                ),
            ),
        )
    except KeyError as error:
        raise ValueError(f"profile result lacks {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"profile result is malformed: {error}") from error


def _spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
    return found | {"free": list(spec.free)} if spec.free else found


def _spec_from_dict(data: Mapping[str, Any]) -> TensorSpec:
    free = tuple(None if name is None else str(name) for name in data.get("free", ()))
    return TensorSpec(str(data["name"]), str(data["datatype"]), tuple(int(size) for size in data["shape"]), free)


def _device_to_dict(device: DeviceProfile) -> dict[str, Any]:
    return {
        "deviceClass": device.device_class,
        "prefixSeconds": list(device.prefix_seconds),
        "timeCv": device.time_cv,
        "overheadSeconds": device.overhead_seconds,
        "codecs": {
            codec: {
                "encodeSecondsPerByte": times.encode_seconds_per_byte,
                "decodeSecondsPerByte": times.decode_seconds_per_byte,
            }
            for codec, times in device.codec_times.items()
        },
        "baseMemoryBytes": device.base_memory_bytes,
        "threads": device.threads,
        "timings": [
            {
                "batch": timing.batch,
                "threads": timing.threads,
                "prefixSeconds": list(timing.prefix_seconds),
                "timeCv": timing.time_cv,
            }
            for timing in device.timings
        ],
    }


def _device_from_dict(data: Mapping[str, Any]) -> DeviceProfile:
    return DeviceProfile(
        device_class=str(data["deviceClass"]),
        prefix_seconds=tuple(float(seconds) for seconds in data["prefixSeconds"]),
        time_cv=float(data["timeCv"]),
        overhead_seconds=float(data["overheadSeconds"]),
        codec_times={
            str(codec): CodecTimes(float(times["encodeSecondsPerByte"]), float(times["decodeSecondsPerByte"]))
            for codec, times in data["codecs"].items()
        },
        base_memory_bytes=int(data["baseMemoryBytes"]),
        threads=int(data["threads"]),
        timings=tuple(
            Timing(
                batch=int(timing["batch"]),
                threads=int(timing["threads"]),
                prefix_seconds=tuple(float(seconds) for seconds in timing["prefixSeconds"]),
                time_cv=float(timing["timeCv"]),
            )
            for timing in data["timings"]
        ),
    )
