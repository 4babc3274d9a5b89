"""The cluster up and down: what `make kind-up`, the demo and the tests on kind all begin and end with.

One command at a time: each holds a lock as long as it makes, uses or takes down the cluster.
"""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from kindcluster import engine as engines
from kindcluster import node_image, product_images, programs
from kindcluster.cluster import NAME, Cluster, Presence
from kindcluster.engine import Engine
from kindcluster.product_images import Images
from splitplane.cli.progress import BuildProgress
from splitplane.local import binaries
from splitplane.local.errors import LocalError
from splitplane.local.paths import cache_home

Say = Callable[[str], None]

_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_INSTANCES = 512
"""What kind's documentation asks for with several nodes."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_orderly() -> None:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does: by ``KeyboardInterrupt``, with everything taken down."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def up(out: Console, *, say: Say) -> Cluster:
    """Bring up a cluster with Prometheus and Splitplane; one that is up gets new images and the chart anew.

    A cluster that this call made goes again when it is interrupted, and stays for a look where something fails.

    Raises:
        LocalError: something is missing or fails, or another command is at the cluster; the message says what to do.
    """
    with alone():
        before = _whole(out)
        try:
            return _up(out, say)
        except KeyboardInterrupt:
            if not before:
                _down(out, say)
            raise


def down(out: Console, *, say: Say) -> None:
    """Delete the cluster; end the private Docker daemon, if one was started, and put the machine's network back.

    Raises:
        LocalError: another command is at the cluster, or something could not be put back; the message says what.
    """
    with alone():
        _down(out, say)


@contextmanager
def running(out: Console, *, say: Say, keep: bool = False) -> Iterator[Cluster]:
    """A cluster with Prometheus and Splitplane for the length of a block.

    At its end, however it comes, what this call made is taken down, unless it is to be kept. A cluster that was up
    before stays, with its nodes booted.

    Raises:
        LocalError: as :func:`up`.
    """
    with alone():
        before = _whole(out)
        try:
            cluster = _up(out, say)
            yield cluster
        except Exception:
            with suppress(LocalError):
                if failed := _whole(out):
                    say(f"Logs of the cluster: {failed.export_logs()}")
            raise
        finally:
            if before:
                before.boot()
                say("The cluster was up before, and stays")
            elif keep:
                say("The cluster stays up (docs/kind.md tells how to look at it). End it: make kind-down")
            else:
                _down(out, say)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock. Raises ``LocalError``, which names the process that does."""
    path = engines.state().with_suffix(".lock")  # beside the folder, which goes with the cluster
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LocalError(
                f"Another command makes, uses or takes down the kind cluster just now (process {file.read()}): "
                "wait until it has ended, or end it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _whole(out: Console) -> Cluster | None:
    """The cluster that is up already."""
    engine = engines.find()
    cluster = _cluster(engine, out) if engine else None
    return cluster if cluster and cluster.presence() is Presence.WHOLE else None


def _up(out: Console, say: Say) -> Cluster:
    engine = engines.ensure()
    say(f"Docker answers at {engine.host or 'its usual address'}")
    engine.check()
    cluster = _cluster(engine, out)
    presence = cluster.presence()
    if presence is Presence.FOREIGN:
        raise LocalError(
            f"There is a kind cluster called {NAME} that these commands did not make. "
            f"Delete it first: kind delete cluster --name {NAME}"
        )
    if presence is Presence.PARTIAL:
        say("Deleting what an interrupted start left of a cluster")
        cluster.delete()
    images = product_images.build(engine, say=say)
    if presence is Presence.WHOLE:
        cluster.revive()
        if not cluster.has(images):
            say("Loading the images")
            cluster.save(images)
            cluster.load(images)
    else:
        _create(cluster, images, out, say)
    say("Installing Prometheus")
    cluster.install_prometheus(images)
    say("Installing Splitplane from its chart")
    cluster.install_chart(images)
    return cluster


def _create(cluster: Cluster, images: Images, out: Console, say: Say) -> None:
    with BuildProgress(out) as progress:
        node = node_image.ensure(cluster.engine, on_build=progress.building, say=say)
    say(f"Creating the cluster from {node}")
    instances = int(_INOTIFY.read_text()) if _INOTIFY.exists() else _INOTIFY_INSTANCES
    if instances < _INOTIFY_INSTANCES:
        say(
            f"{instances} inotify instances may be too few for four nodes ('too many open files' in their logs): "
            f"sudo sysctl fs.inotify.max_user_instances={_INOTIFY_INSTANCES}"
        )
    with ThreadPoolExecutor() as pool:
        saved = pool.submit(cluster.save, images)
        cluster.create(node)
        saved.result()
    say("Loading the images")
    cluster.load(images)


def _down(out: Console, say: Say) -> None:
    with _undisturbed():
        engine = engines.find()
        if engine:
            cluster = _cluster(engine, out)
            if cluster.presence() is Presence.FOREIGN:
                say(f"The kind cluster {NAME} was not made by these commands, and stays")
            else:
                cluster.delete()
        if engines.stop():
            say("The private Docker daemon has ended; the machine's network is as it was")
        elsewhere = " (images in Docker)" if engine and engine.host is None else ""
        say(f"Images, programs and torch stay for the next time: {cache_home()}{elsewhere}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second signal stop what cleans up after the first one; it ends by itself."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cluster(engine: Engine, out: Console) -> Cluster:
    with BuildProgress(out) as progress:
        kind = binaries.built(programs.KIND, on_build=progress.building)
        kubectl, helm = (binaries.ensure(name, on_build=progress.building) for name in ("kubectl", "helm"))
    return Cluster(engine, kind, kubectl, helm)
