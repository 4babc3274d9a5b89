"""kubectl against a cluster, failing the test with kubectl's own words."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitplane.local import binaries

Kubectl = Callable[..., str]


def kubectl_for(kubeconfig: Path) -> Kubectl:
    program = binaries.ensure("kubectl")

    def run(*arguments: str, stdin: Any = None, check: bool = True, timeout: float = 180) -> str:
        text = stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin)
        result = subprocess.run(
            [str(program), f"--kubeconfig={kubeconfig}", *arguments],
            input=text, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        if check and result.returncode:
            pytest.fail(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout if check else result.stdout + result.stderr

    return run
