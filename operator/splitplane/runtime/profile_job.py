"""``python -m splitplane.runtime.profile_job``: measure a model on the node that this pod runs on.

The result goes to key ``result.json`` of the ConfigMap that the operator made for it (``domain.profiles_io`` is its
form); until then, key ``progress`` says how far the measuring is. Exit codes: 0 measured and written; 2 a variable is
missing or malformed; 3 the factory, 4 the weights are wrong; 6 the result could not be written; 1 anything else. When
it fails, the last line of the log says why and what to do.
"""

import asyncio
import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from splitplane.adapters.cluster import ClusterError
from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import CONFIG_MAP
from splitplane.domain.profiles_io import PROGRESS, RESULT, ProfileResult, to_dict
from splitplane.model import FactoryError, ModelSource, WeightsError, libraries
from splitplane.runtime import emulation
from splitplane.runtime.environment import SettingsError, required, threads
from splitplane.runtime.profiling import profile_model

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (FactoryError, 3),
    (WeightsError, 4),
    (ClusterError, 6),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The job's environment (docs/architecture.md, "Pods")."""

    namespace: str
    result_config_map: str
    device_class: str
    model: str
    threads: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises :class:`SettingsError` that names what is missing or malformed."""
        values = required(
            environment, "NAMESPACE", "RESULT_CONFIGMAP", "DEVICE_CLASS", "MODEL",
            given_by="the operator gives them to profile jobs",
        )  # fmt: skip
        return cls(
            namespace=values["NAMESPACE"],
            result_config_map=values["RESULT_CONFIGMAP"],
            device_class=values["DEVICE_CLASS"],
            model=values["MODEL"],
            threads=threads(environment),
        )


def run(settings: Settings) -> ProfileResult:
    """Measure the model, and tell the operator every few seconds how far that is. Raises :class:`ModelError`."""
    source = ModelSource.from_json(settings.model)
    libraries.use_threads(settings.threads)

    def progress(share: float, text: str) -> None:
        say(text)
        try:
            asyncio.run(publish(settings, {PROGRESS: f"{share:.0%}: {text}"}))
        except ClusterError as error:  # the result may still get through
            say(f"progress could not be told: {error}")

    return profile_model(source, settings.device_class, say=say, progress=progress, slowdown=emulation.speed_factor())


async def publish(settings: Settings, data: Mapping[str, str]) -> None:
    """Write where the operator looks. Raises :class:`ClusterError`."""
    cluster = await connect(component="splitplane-profile")
    try:
        # A merge touches these keys alone; server-side apply would have to know all that the operator set.
        await cluster.merge(CONFIG_MAP, settings.result_config_map, settings.namespace, {"data": dict(data)})
    finally:
        await cluster.close()


def say(message: str) -> None:
    sys.stderr.write(f"profile_job: {message}\n")
    sys.stderr.flush()


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="profile_job: %(message)s")
    try:
        settings = Settings.from_environment(os.environ)
        emulation.speed_factor()  # a wrong one should end the job before the model is loaded
        result = run(settings)
        asyncio.run(publish(settings, {RESULT: json.dumps(to_dict(result))}))
    except SettingsError as error:
        return _fail(error, 2)
    except tuple(kind for kind, _ in EXIT_CODES) as error:
        return _fail(error, next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
    except Exception as error:
        traceback.print_exc()
        return _fail(error, 1)
    say(f"result written to ConfigMap {settings.namespace}/{settings.result_config_map}")
    return 0


def _fail(error: Exception, code: int) -> int:
    text = " ".join(str(error).split()) or "no reason given"
    say(text if code != 1 else f"failed: {type(error).__name__}: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main())
