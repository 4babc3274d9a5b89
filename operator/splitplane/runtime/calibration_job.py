"""``python -m splitplane.runtime.calibration_job``: what crossing costs and shows, on the user's real inputs.

Accuracy loss and leak of the cuts and codecs that the operator asks for, within the time that it gives and half of the
memory that the pod has left once the model is loaded, on a node of a trusted tier. Nothing but shares leaves the pod.
The result goes where a profile job's goes, with the same exit codes (``runtime.profile_job``), and 5 where the file of
inputs is wrong.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from splitplane.afresh import may_begin_again
from splitplane.domain.calibrations import AccuracyFound, CalibrationRequest, CalibrationResult, LeakFound
from splitplane.domain.defences import Defence
from splitplane.domain.profiles import BASE_CODECS
from splitplane.model import ModelSource, Partition, libraries, load_partition
from splitplane.model.accuracy import compare_codecs
from splitplane.model.calibration import Calibration, read_calibration
from splitplane.model.errors import CalibrationError, WeightsError
from splitplane.model.leak import defended, measure_leak
from splitplane.model.memory import available_bytes
from splitplane.model.profile import Codec
from splitplane.model.weights import WeightsFile
from splitplane.runtime.environment import SettingsError, required, threads
from splitplane.runtime.job import VARIABLES, Publisher, main
from splitplane.runtime.profiling import wire_codecs

ACCURACY_SHARE = 0.25
"""Of the time, where a leak is asked for as well."""
MOST_SAMPLES = 4096
"""Inputs that are read, if memory allows, and compared, if time does: where none differs, a loss above 0.0007 is
excluded."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The job's environment (docs/architecture.md, "Pods")."""

    model: str
    request: CalibrationRequest
    threads: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises :class:`SettingsError` that names what is missing or malformed."""
        values = required(
            environment, *VARIABLES, "MODEL", "CALIBRATION", given_by="the operator gives them to calibration jobs"
        )  # fmt: skip
        try:
            request = CalibrationRequest.from_dict(json.loads(values["CALIBRATION"]))
        except ValueError as error:
            raise SettingsError(f"SPLITPLANE_CALIBRATION: {error}") from error
        return cls(values["MODEL"], request, threads(environment))


def calibrate(settings: Settings, progress: Callable[[str], None]) -> CalibrationResult:
    """Measure what is asked for; where labels are wrong, the leak alone. Raises :class:`ModelError`."""
    source, request = ModelSource.from_json(settings.model), settings.request
    partition = load_partition(source, 0, None)
    started, memory = time.monotonic(), available_bytes() // 2
    given = _inputs(source, request, memory // 8)
    accuracy, refusal = None, ""
    if request.accuracy:
        share = ACCURACY_SHARE if request.leak else 1.0
        try:
            accuracy = _accuracy(partition, given, request, started + share * request.seconds, memory, progress)
        except CalibrationError as error:
            if not request.leak:
                raise
            refusal = str(error)
            progress(f"accuracy was not measured: {refusal}")
    leak = None
    if request.leak:
        left = request.seconds - (time.monotonic() - started)
        leak = _leak(partition, given, request, max(1.0, left), settings.threads, memory, progress)
    return CalibrationResult(partition.graph.fingerprint, accuracy, leak, refusal)


def _accuracy(
    partition: Partition, given: Calibration, request: CalibrationRequest, end: float, memory: int,
    progress: Callable[[str], None],
) -> AccuracyFound:  # fmt: skip
    cuts, codecs = _asked(request.accuracy, request.defence)
    found = compare_codecs(
        partition, given, codecs, cuts, metric=request.metric, end=end, memory_bytes=memory, progress=progress
    )
    return AccuracyFound(
        found.metric, found.samples, found.whole, {(each.cut, each.codec): each.bound for each in found.agreements},
        given.sha256,
    )  # fmt: skip


def _leak(
    partition: Partition, given: Calibration, request: CalibrationRequest, seconds: float, threads: int,
    memory: int, progress: Callable[[str], None],
) -> LeakFound:  # fmt: skip
    cuts, codecs = _asked(request.leak, request.defence)
    report = measure_leak(
        partition, given, codecs, cuts, budget_seconds=seconds, threads=threads, memory_bytes=memory, progress=progress
    )
    return report.found(given.sha256)


def _asked(pairs: tuple[tuple[int, str], ...], defence: Defence) -> tuple[list[int], dict[str, Codec]]:
    """The cuts, and the codecs in the order of falling fidelity: all of them are tried at each."""
    known, asked = wire_codecs(), {codec for _, codec in pairs}
    if defence:
        known = {name: defended(codec, defence) for name, codec in known.items()}
    return sorted({cut for cut, _ in pairs}), {codec: known[codec] for codec in BASE_CODECS if codec in asked}


def _inputs(source: ModelSource, request: CalibrationRequest, most_bytes: int) -> Calibration:
    try:
        file = WeightsFile.open(replace(source, weights_uri=request.uri, weights_sha256=request.sha256))
    except WeightsError as error:
        raise CalibrationError(str(error).replace("weights", "calibration")) from error
    given = read_calibration(file.path, source.inputs, most=MOST_SAMPLES, most_bytes=most_bytes)
    if given.sha256 != file.sha256:
        raise CalibrationError(f"{file.path} was replaced after it was verified: measure again")
    return given


def work(environment: Mapping[str, str], publisher: Publisher) -> Mapping[str, object]:
    settings = Settings.from_environment(environment)
    libraries.use_threads(settings.threads)
    return calibrate(settings, publisher.progress).to_dict()


if __name__ == "__main__":
    may_begin_again()
    sys.exit(main("calibration_job", work))
