"""What the agent remembers of a pod. Written to disk at every change, so that a restarted agent knows what it left."""

import contextlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

Phase = Literal["Pending", "Running", "Succeeded", "Failed"]


class Run(BaseModel):
    """A run of a container that has started and not yet been seen to end. Times are seconds since the epoch."""

    container_id: str
    pid: int
    start_ticks: int
    started_at: float


class Ended(BaseModel):
    """How a run of a container ended."""

    container_id: str = ""
    exit_code: int
    reason: str
    message: str = ""
    started_at: float
    finished_at: float


class Waiting(BaseModel):
    """Why a container does not run: reason as kubelet spells it, and a message for people."""

    reason: str
    message: str = ""


class Failure(BaseModel):
    """A start that could not be made, for a reason outside the container."""

    waiting: Waiting
    at: float
    attempts: int = 1


class Backoff(BaseModel):
    """Kubelet's crash back-off: the pause before the next restart, and when it was last raised."""

    seconds: float
    raised_at: float


class ContainerRecord(BaseModel):
    """One container of a pod."""

    runs: int = 0
    """Runs begun so far; the restart count is one less."""
    run: Run | None = None
    ended: Ended | None = None
    """The latest run that ended."""
    before: Ended | None = None
    """The run that ended before that."""
    failure: Failure | None = None
    backoff: Backoff | None = None
    started: bool = False
    """The startup probe, if there is one, has succeeded in this run."""
    ready: bool = False
    restart: str | None = None
    """Why the running container must be ended and run again, such as a failed liveness probe."""
    restart_grace: float | None = None
    stopping: bool = False
    """Its termination is under way."""

    @property
    def restarts(self) -> int:
        """What ``restartCount`` shows."""
        return max(0, self.runs - 1)

    def finish(self, ended: Ended) -> None:
        """Record the end of the current run."""
        self.before, self.ended = self.ended, ended
        self.run = None
        self.started = self.ready = self.stopping = False
        self.restart = self.restart_grace = None


class PodRecord(BaseModel):
    """One pod on this node."""

    namespace: str
    name: str
    uid: str
    ip: str = ""
    admitted_at: float
    containers: dict[str, ContainerRecord] = Field(default_factory=dict)
    failed: Waiting | None = None
    """Why the pod as a whole was refused or ended by the agent; final."""
    volumes_ready: bool = False
    phase: Phase = "Pending"

    def container(self, name: str) -> ContainerRecord:
        """The record of a container, made at its first mention."""
        return self.containers.setdefault(name, ContainerRecord())

    def look(self, name: str) -> ContainerRecord:
        """The record of a container, or an empty one that is not kept."""
        return self.containers.get(name) or ContainerRecord()

    @property
    def running(self) -> list[str]:
        """Names of containers with a process."""
        return [name for name, record in self.containers.items() if record.run is not None]


def save(record: PodRecord, folder: Path) -> None:
    """Write a record into its pod's folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "record.json.new"
    fresh.write_text(record.model_dump_json())
    fresh.replace(folder / "record.json")


def load(folder: Path) -> PodRecord | None:
    """The record in a pod's folder; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValidationError):
        return PodRecord.model_validate_json((folder / "record.json").read_bytes())
    return None
