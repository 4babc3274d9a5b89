"""Splitplane into the embedded cluster: the same chart as everywhere, with the few values that this cluster needs."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from splitplane.local.addresses import Addresses
from splitplane.local.cluster import Cluster
from splitplane.local.errors import LocalError
from splitplane.local.files import write_json

RELEASE = "splitplane"
NAMESPACE = "splitplane-system"


def find_chart() -> Path:
    """The chart beside this package's sources.

    Raises:
        LocalError: the package was installed without it; name it by ``--chart``.
    """
    for folder in Path(__file__).resolve().parents:
        chart = folder / "charts" / "splitplane"
        if (chart / "Chart.yaml").exists():
            return chart
    raise LocalError("The chart is not beside this installation: name its folder with --chart.")


def install(
    cluster: Cluster,
    *,
    helm: Path,
    chart: Path,
    values: Sequence[Path] = (),
    settings: Sequence[str] = (),
    timeout_seconds: int = 180,
) -> None:
    """Install or upgrade the chart, and wait until the operator is available.

    Args:
        values: files of values, later ones win over earlier ones and over this cluster's.
        settings: ``key=value`` as for ``helm --set``; they win over all files.

    Raises:
        LocalError: the cluster is down, or helm or the roll-out failed; the message has their words.
    """
    cluster.require_running()
    addresses = Addresses.read(cluster.paths.addresses)
    if addresses is None:
        raise LocalError(f"The cluster {cluster.paths.name!r} has no addresses: start it with `splitplane local up`.")
    own = cluster.paths.root / "install-values.json"
    write_json(own, {"prometheus": {"url": addresses.prometheus_url}})
    command = [
        str(helm), "upgrade", "--install", RELEASE, str(chart), f"--kubeconfig={cluster.paths.kubeconfig}",
        f"--namespace={NAMESPACE}", "--create-namespace",
        *(f"--values={path}" for path in (own, *values)), *(f"--set={setting}" for setting in settings),
    ]  # fmt: skip
    _run(command, "helm", timeout_seconds)
    _run(
        [
            cluster.binaries()["kubectl"], f"--kubeconfig={cluster.paths.kubeconfig}", f"--namespace={NAMESPACE}",
            "wait", "deployment", f"--selector=app.kubernetes.io/instance={RELEASE}", "--for=condition=Available",
            f"--timeout={timeout_seconds}s",
        ],
        "The operator did not become available",
        timeout_seconds + 10,
    )  # fmt: skip


def _run(command: list[str], what: str, timeout_seconds: float) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"{what}: no answer within {timeout_seconds:.0f} s.") from error
    if result.returncode:
        raise LocalError(f"{what}: {(result.stderr or result.stdout).strip()}")
