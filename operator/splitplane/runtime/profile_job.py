"""``python -m splitplane.runtime.profile_job``: measure a model on the node that this pod runs on.

``domain.profiles_io`` is the result's form; where it goes and how the job ends is told in ``runtime.job``.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from splitplane.afresh import may_begin_again
from splitplane.domain.profiles_io import to_dict
from splitplane.model import ModelSource, libraries
from splitplane.runtime import emulation
from splitplane.runtime.environment import required, threads
from splitplane.runtime.job import VARIABLES, Publisher, main
from splitplane.runtime.profiling import profile_model


@dataclass(frozen=True, slots=True)
class Settings:
    """The job's environment (docs/architecture.md, "Pods")."""

    device_class: str
    model: str
    threads: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises :class:`SettingsError` that names what is missing or malformed."""
        values = required(
            environment, *VARIABLES, "DEVICE_CLASS", "MODEL", given_by="the operator gives them to profile jobs"
        )  # fmt: skip
        return cls(device_class=values["DEVICE_CLASS"], model=values["MODEL"], threads=threads(environment))


def work(environment: Mapping[str, str], publisher: Publisher) -> Mapping[str, object]:
    """Measure the model, and tell the operator every few seconds how far that is. Raises :class:`ModelError`."""
    settings = Settings.from_environment(environment)
    slowdown = emulation.speed_factor()  # a wrong one should end the job before the model is loaded
    source = ModelSource.from_json(settings.model)
    libraries.use_threads(settings.threads)
    return to_dict(
        profile_model(
            source, settings.device_class, say=publisher.say, slowdown=slowdown,
            progress=lambda share, text: publisher.progress(f"{share:.0%}: {text}"),
        )
    )  # fmt: skip


if __name__ == "__main__":
    may_begin_again()
    sys.exit(main("profile_job", work))
