"""What a calibration job is asked for and what it answers: accuracy loss and leak by cut and codec. Plain JSON.

The operator and the job use this module both, so the form has one definition.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from splitplane.domain.defences import NONE, Defence

Metric = Literal["top1", "top5", "r2", "cosine"]
"""What answers are judged by: the share of right classes among the one or the five highest scores, the coefficient of
determination, the cosine between an output and that of the unsplit model."""

FORMAT = 4
"""Raised when the form changes in a way that an older reader would misread."""

UNREAD = "of no cut is it known how its numbers are arranged, and the attack is at a blind guess at each"
"""A weakness of attacks that neither time nor inputs mend (``model.arrangements``)."""
READ_FORMS = (
    'let the model hand on what is read (docs/privacy.md, "Leak"), such as [n, channels, height, width] or'
    " [n, tokens, channels]"
)
"""What does mend it."""

Shares = Mapping[tuple[int, str], float]
"""By (cut, codec), from 0 to 1."""


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """Which (cut, codec) to try, on which file, in how many seconds.

    ``accuracy`` are those whose loss is asked for, by ``metric`` (empty: by what labels and outputs call for), ``leak``
    those that are to be attacked; ``defence`` is carried out before each codec.
    """

    uri: str
    sha256: str
    seconds: float
    accuracy: tuple[tuple[int, str], ...] = ()
    leak: tuple[tuple[int, str], ...] = ()
    defence: Defence = NONE
    metric: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "uri": self.uri, "sha256": self.sha256, "seconds": self.seconds,
            "accuracy": [list(pair) for pair in self.accuracy], "leak": [list(pair) for pair in self.leak],
            "defence": self.defence.to_dict(), "metric": self.metric,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CalibrationRequest":
        """Raises ``ValueError`` that names what is missing or wrong."""
        try:
            return cls(
                str(data["uri"]), str(data["sha256"]), float(data["seconds"]),
                _pairs(data["accuracy"]), _pairs(data["leak"]), Defence.from_dict(data["defence"]),
                str(data["metric"]),
            )  # fmt: skip
        except KeyError as error:
            raise ValueError(f"the request lacks {error}") from error
        except TypeError as error:
            raise ValueError(f"the request is malformed: {error}") from error


@dataclass(frozen=True, slots=True)
class AccuracyFound:
    """What each (cut, codec) loses at most, with 95 % confidence, by ``metric``, on so many ``samples``.

    ``whole`` is the unsplit model's share by the metric, where there are labels; ``sha256`` that of the file of inputs.
    """

    metric: str
    samples: int
    whole: float | None
    losses: Shares
    sha256: str


@dataclass(frozen=True, slots=True)
class LeakFound:
    """What the attacks got, and the controls; ``shuffled_skill`` is how far the shuffled one is beyond a blind guess.

    ``weakness`` says why no limit may rest on the attacks, and is empty if one may; ``sha256`` is that of the file of
    inputs.
    """

    attack: str
    score: str
    samples: int
    input_control: float
    shuffled_control: float
    shuffled_skill: float
    weakness: str
    scores: Shares
    sha256: str


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """Of the model with ``fingerprint``: what its codecs lose, and what crossing it shows.

    ``refusal`` says why accuracy loss could not be measured though it was asked for, such as by wrong labels, and what
    to do; it is empty if it could.
    """

    fingerprint: str
    accuracy: AccuracyFound | None
    leak: LeakFound | None
    refusal: str = ""

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"format": FORMAT, "fingerprint": self.fingerprint, "refusal": self.refusal}
        if self.accuracy is not None:
            found["accuracy"] = {
                "metric": self.accuracy.metric, "samples": self.accuracy.samples, "whole": self.accuracy.whole,
                "losses": _rows(self.accuracy.losses), "sha256": self.accuracy.sha256,
            }  # fmt: skip
        if self.leak is not None:
            found["leak"] = {
                "attack": self.leak.attack, "score": self.leak.score, "samples": self.leak.samples,
                "inputControl": self.leak.input_control, "shuffledControl": self.leak.shuffled_control,
                "shuffledSkill": self.leak.shuffled_skill, "weakness": self.leak.weakness,
                "scores": _rows(self.leak.scores), "sha256": self.leak.sha256,
            }  # fmt: skip
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CalibrationResult":
        """Raises ``ValueError`` that names what is missing or wrong."""
        try:
            if data["format"] != FORMAT:
                raise ValueError(
                    f"calibration result has format {data['format']}, this version reads {FORMAT}: "
                    "let operator and runtime image be of one release"
                )
            accuracy, leak = data.get("accuracy"), data.get("leak")
            return cls(
                str(data["fingerprint"]),
                None if accuracy is None else _accuracy(accuracy),
                None if leak is None else _leak(leak),
                str(data["refusal"]),
            )
        except KeyError as error:
            raise ValueError(f"calibration result lacks {error}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"calibration result is malformed: {error}") from error


def _accuracy(found: Mapping[str, Any]) -> AccuracyFound:
    whole = found["whole"]
    return AccuracyFound(
        str(found["metric"]), int(found["samples"]), None if whole is None else float(whole), _shares(found["losses"]),
        str(found["sha256"]),
    )  # fmt: skip


def _leak(found: Mapping[str, Any]) -> LeakFound:
    return LeakFound(
        str(found["attack"]), str(found["score"]), int(found["samples"]), float(found["inputControl"]),
        float(found["shuffledControl"]), float(found["shuffledSkill"]), str(found["weakness"]),
        _shares(found["scores"]), str(found["sha256"]),
    )  # fmt: skip


def _rows(shares: Shares) -> list[list[Any]]:
    return [[cut, codec, share] for (cut, codec), share in sorted(shares.items())]


def _shares(rows: Any) -> dict[tuple[int, str], float]:
    return {(int(cut), str(codec)): float(share) for cut, codec, share in rows}


def _pairs(rows: Any) -> tuple[tuple[int, str], ...]:
    return tuple((int(cut), str(codec)) for cut, codec in rows)
