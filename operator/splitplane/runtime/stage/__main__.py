"""``python -m splitplane.runtime.stage``: what a stage's pod runs.

Exit code 0 after a drain; 78 (``EX_CONFIG``) when a retry cannot help until somebody changes the pipeline or the image;
1 otherwise. The last line of the log says why.
"""

import asyncio
import gc
import logging
import os
import sys
import traceback

from prometheus_client import REGISTRY

from splitplane.afresh import may_begin_again
from splitplane.freed_memory import MESSAGES_BYTES, keep_freed
from splitplane.model import ModelError, ModelSource, libraries, load_partition
from splitplane.runtime import emulation, tracing
from splitplane.runtime.environment import SettingsError
from splitplane.runtime.stage import server
from splitplane.runtime.stage.computing import Runnable
from splitplane.runtime.stage.settings import Settings

LOG = logging.getLogger("splitplane.runtime.stage")


class FingerprintError(Exception):
    """This pod would compute something else than what was profiled."""


def load(settings: Settings) -> Runnable:
    """Load the resident range. Raises ``ModelError``, or :class:`FingerprintError`: not what was profiled."""
    source = ModelSource.from_json(settings.model)
    try:
        partition = load_partition(source, settings.resident_first, settings.resident_last)
    except ValueError as error:
        raise SettingsError(f"SPLITPLANE_RESIDENT: {error}") from error
    if partition.graph.verdict is not None:
        LOG.warning("the model %s", partition.graph.verdict)
    if partition.graph.fingerprint != settings.fingerprint:
        raise FingerprintError(
            f"this pod's model has the fingerprint {partition.graph.fingerprint}, its profile {settings.fingerprint}: "
            "the factory, the weights or the libraries of the image changed since; let the model be profiled again"
        )
    return partition


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = Settings.from_environment(os.environ)
        keep_freed(MESSAGES_BYTES)
        libraries.use_threads(settings.threads)
        tracing.begin(os.environ, service="splitplane-stage", **settings.described())
        emulation.speed_factor()  # a wrong one should end the start, not each request
        # The libraries stay as long as the process: looking through them once more would hold requests up for 0.2 s.
        gc.freeze()
        asyncio.run(server.run(settings, lambda: load(settings), emulation.pace, REGISTRY))
        tracing.end()
    except (SettingsError, ModelError, FingerprintError) as error:
        LOG.error("cannot start: %s", " ".join(str(error).split()))
        return os.EX_CONFIG
    except Exception as error:
        traceback.print_exc()
        LOG.error("failed: %s: %s", type(error).__name__, " ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    may_begin_again()
    code = main()
    sys.stderr.flush()
    # A load that was told to stop still holds its daemon thread inside torch, which must not outlive the interpreter.
    os._exit(code)
