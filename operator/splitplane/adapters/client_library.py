"""The Kubernetes client without its synchronous half.

``import kubernetes.aio`` first runs ``kubernetes/__init__``, which imports all of the synchronous client: configuration
(with requests and OAuth), streams, leader election, informers. Splitplane uses none of it, and a gateway would spend a
tenth of its start on it. Here the package is put in place without running it; what is asked of it is imported then.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from typing import Any

PACKAGE = "kubernetes"


def prepare() -> None:
    """Must come before the first import of the client, by Kopf too."""
    if PACKAGE in sys.modules or (spec := importlib.util.find_spec(PACKAGE)) is None:
        return
    package = importlib.util.module_from_spec(spec)
    package.__dict__["__getattr__"] = _part
    sys.modules[PACKAGE] = package


def _part(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(PACKAGE)
    try:
        return importlib.import_module(f"{PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}") from error
