"""What the operator's jobs on a model share: telling how far they are, leaving their result, and how they end.

The result goes to key ``result.json`` of the ConfigMap that the operator made for the job; until then, key ``progress``
says how far it is. Exit codes: 0 done and written; 2 a variable is missing or malformed; 3 the factory, 4 the weights,
5 the file of calibration inputs is wrong; 6 the result could not be written; 1 anything else. When a job fails, the
last line of its log says why and what to do.
"""

import asyncio
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from splitplane.adapters.cluster import ClusterError
from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import CONFIG_MAP
from splitplane.domain.profiles_io import PROGRESS, RESULT
from splitplane.model import FactoryError, WeightsError, caching
from splitplane.model.errors import CalibrationError
from splitplane.runtime.environment import SettingsError

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (SettingsError, 2),
    (FactoryError, 3),
    (WeightsError, 4),
    (CalibrationError, 5),
    (ClusterError, 6),
)
PROGRESS_SECONDS = 2.0
"""Progress is told no more often: each time is a write that the operator's watch brings to it."""


VARIABLES = "NAMESPACE", "RESULT_CONFIGMAP"
"""What every job is told of where its result goes; each job's settings ask for them among their own."""


class Publisher:
    """Writes where the operator looks. ``name`` is the job's in its log."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self._name = name
        self._namespace, self._config_map = (environment.get(f"SPLITPLANE_{each}", "") for each in VARIABLES)
        self._told = -PROGRESS_SECONDS

    def say(self, message: str) -> None:
        _say(self._name, message)

    def progress(self, text: str) -> None:
        """Tell how far the job is, in its log as well, if it was not told just now."""
        if self._due():
            self.say(text)
            self.tell(text)

    def repeat(self, record: logging.LogRecord) -> bool:
        """Tell what is logged anyway, if nothing was told just now: a filter of loggers, which lets everything pass."""
        if self._due():
            self.tell(record.getMessage())
        return True

    def tell(self, text: str) -> None:
        """Tell the operator alone."""
        self._told = time.monotonic()
        try:
            self._publish({PROGRESS: text})
        except ClusterError as error:  # the result may still get through
            self.say(f"progress could not be told: {error}")

    def _due(self) -> bool:
        return time.monotonic() - self._told >= PROGRESS_SECONDS

    def result(self, found: Mapping[str, object]) -> None:
        """Leave the result. Raises :class:`ClusterError`."""
        self._publish({RESULT: json.dumps(found)})
        self.say(f"result written to ConfigMap {self._namespace}/{self._config_map}")

    def _publish(self, data: Mapping[str, str]) -> None:
        async def merge() -> None:
            cluster = await connect(component="splitplane-job")
            try:
                # A merge touches these keys alone; server-side apply would have to know all that the operator set.
                await cluster.merge(CONFIG_MAP, self._config_map, self._namespace, {"data": dict(data)})
            finally:
                await cluster.close()

        asyncio.run(merge())


Work = Callable[[Mapping[str, str], Publisher], Mapping[str, object]]
"""Takes the environment, gives the result. Raises :class:`SettingsError` and :class:`ModelError`."""


def main(name: str, work: Work) -> int:
    """Do a job; its exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"{name}: %(message)s")
    publisher = Publisher(name, os.environ)
    caching.log.addFilter(publisher.repeat)  # a download may take longer than all that follows
    try:
        publisher.result(work(os.environ, publisher))
    except tuple(kind for kind, _ in EXIT_CODES) as error:
        _say(name, _line(error))
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except Exception as error:
        traceback.print_exc()
        _say(name, f"failed: {type(error).__name__}: {_line(error)}")
        return 1
    return 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no reason given"


def _say(name: str, message: str) -> None:
    sys.stderr.write(f"{name}: {message}\n")
    sys.stderr.flush()
