"""Where the demo can run, and what differs there. Everything else is the same on every kind of cluster."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from demo.kube import DemoError, Kube

EXAMPLES = Path(__file__).parents[1]
PIPELINE = "pitch-tracker"
PIPELINE_FILE = EXAMPLES / f"{PIPELINE}.yaml"
CLAIM = "splitplane-models"
WEIGHTS = "crepe-full.safetensors"


class Site(Protocol):
    """A cluster of edge and cloud nodes, and the hands to change it.

    All methods raise ``DemoError`` or ``LocalError``.
    """

    patience: float
    """What all times to wait are multiplied by."""

    def up(self) -> AbstractContextManager[Kube]:
        """The cluster with Splitplane's requirements, but for Splitplane; gone afterwards unless the user keeps it."""
        ...

    def install(self) -> None:
        """Splitplane itself, from its chart."""
        ...

    def weights(self) -> Path:
        """Puts the trained weights on the claim ``CLAIM``; the same file as this machine sees it."""
        ...

    def pipeline(self) -> str:
        """The manifest of the pipeline, with resources that make this machine's cores the scenario's devices."""
        ...

    def gateway(self) -> str:
        """``host:port`` of the pipeline's gateway (gRPC), as this machine reaches it."""
        ...

    def limit_link(self, rate: str) -> None:
        """Every byte between edge and cloud goes at this rate from now on, such as ``40Mbit``."""
        ...

    def set_cloud_price(self, replica_per_hour: float) -> None:
        """Change what a cloud node costs, so that a replica's share of it is this."""
        ...

    def lose_cloud(self) -> None:
        """The cloud node is gone without a word."""
        ...

    def shown(self) -> list[str]:
        """What the cluster shows at the end that should not be so, in words."""
        ...


def python(*arguments: str) -> str:
    """Output of another Python, so that this one stays free of torch. Raises ``DemoError`` with its words."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise DemoError(f"python {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def frame_seconds() -> float:
    """What one frame takes on one thread of this machine."""
    return float(python("-m", "demo.speed"))
