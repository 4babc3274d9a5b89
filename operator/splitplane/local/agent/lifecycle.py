"""What to do next with a pod: a pure function of its specification, of what the agent remembers, and of the time.

The rules are kubelet's: init containers in order, sidecars (init containers with ``restartPolicy: Always``) beside the
rest, restarts by policy with an exponential back-off, termination of main containers before sidecars.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitplane.domain.resources import is_sidecar
from splitplane.local.agent.state import Backoff, ContainerRecord, Ended, Phase, PodRecord, Waiting

FIRST_BACKOFF = 10.0
MOST_BACKOFF = 300.0
FIRST_RETRY = 1.0
MOST_RETRY = 10.0

Pod = Mapping[str, Any]


@dataclass(frozen=True)
class Stop:
    """End a running container within `grace` seconds."""

    name: str
    grace: float
    message: str


@dataclass(frozen=True)
class Decision:
    """What holds now and what to do about it."""

    phase: Phase
    start: tuple[str, ...] = ()
    stop: tuple[Stop, ...] = ()
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    fail: Waiting | None = None
    """The pod as a whole fails for this reason, from now on."""
    wake_at: float | None = None
    """When to decide again, if nothing happens before."""
    over: bool = False
    """Nothing runs, and nothing will run again."""


def all_containers(pod: Pod) -> list[Mapping[str, Any]]:
    """Init containers, then main containers."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def grace_of(pod: Pod) -> float:
    """Seconds between SIGTERM and SIGKILL: the deletion's, else the specification's."""
    deletion = pod["metadata"].get("deletionGracePeriodSeconds")
    return float(deletion if deletion is not None else pod["spec"].get("terminationGracePeriodSeconds", 30))


def raised(backoff: Backoff | None, now: float) -> Backoff:
    """The back-off after one more restart: doubled, or the first again after a long quiet time."""
    if backoff is None or now - backoff.raised_at > 2 * MOST_BACKOFF:
        return Backoff(seconds=FIRST_BACKOFF, raised_at=now)
    return Backoff(seconds=min(backoff.seconds * 2, MOST_BACKOFF), raised_at=now)


def restart_at(record: ContainerRecord, ended: Ended) -> float:
    """The earliest time of the next run. The first restart comes at once, as kubelet's does."""
    backoff = record.backoff
    if backoff is None or ended.finished_at - backoff.raised_at > 2 * MOST_BACKOFF:
        return ended.finished_at
    return ended.finished_at + backoff.seconds


def retry_at(record: ContainerRecord) -> float:
    """When to try again a start that failed for a reason outside the container."""
    if record.failure is None:
        return 0.0
    return record.failure.at + min(FIRST_RETRY * 2.0 ** min(record.failure.attempts - 1, 16), MOST_RETRY)


def decide(pod: Pod, record: PodRecord, now: float) -> Decision:
    """The next step of a pod."""
    return _Deciding(pod, record, now).decide()


class _Deciding:
    """The parts of one decision; collects what is started and what waits."""

    def __init__(self, pod: Pod, record: PodRecord, now: float) -> None:
        self.pod, self.record, self.now = pod, record, now
        self.policy = pod["spec"].get("restartPolicy", "Always")
        self.start: list[str] = []
        self.stop: list[Stop] = []
        self.waiting: dict[str, Waiting] = {}
        self.times: list[float] = []

    def decide(self) -> Decision:
        if self.record.failed is not None:
            return self.ending("Failed", f"{self.record.failed.reason}")
        if self.record.phase in {"Succeeded", "Failed"}:
            return self.ending(self.record.phase, "its pod has completed")
        if self.pod["metadata"].get("deletionTimestamp"):
            return self.ending(self.final_phase(), "its pod is deleted")
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        if deadline is not None:
            ends = self.record.admitted_at + float(deadline)
            if self.now >= ends:
                why = "Pod was active on the node longer than the specified deadline"
                return Decision(self.record.phase, fail=Waiting(reason="DeadlineExceeded", message=why))
            self.times.append(ends)
        initialised, init_failed = self.init_containers()
        if init_failed:
            return self.ending("Failed", "an init container has failed")
        if not initialised:
            for container in self.pod["spec"]["containers"]:
                self.waiting.setdefault(container["name"], Waiting(reason="PodInitializing"))
            return self.result("Pending")
        for container in self.pod["spec"]["containers"]:
            self.keep(container["name"], self.policy)
        phase = self.phase()
        if phase in {"Succeeded", "Failed"}:
            return self.ending(phase, "its pod has completed")
        return self.result(phase)

    def result(self, phase: Phase) -> Decision:
        return Decision(
            phase,
            start=tuple(self.start),
            stop=tuple(self.stop),
            waiting=self.waiting,
            wake_at=min(self.times, default=None),
        )

    def init_containers(self) -> tuple[bool, bool]:
        """Whether all are done, and whether one has failed for good. Starts the next one."""
        # Once main containers have run, finished init containers are history; sidecars are kept running.
        begun = any(self.record.look(c["name"]).runs for c in self.pod["spec"]["containers"])
        for container in self.pod["spec"].get("initContainers", []):
            name = container["name"]
            record = self.record.look(name)
            if is_sidecar(container):
                self.keep(name, "Always")
                if not begun and not (record.run and record.started):
                    return False, False
            elif not begun and not (record.run is None and record.ended and record.ended.exit_code == 0):
                if record.run is None and record.ended and self.policy == "Never":
                    return False, True
                self.keep(name, "Never" if self.policy == "Never" else "OnFailure")
                return False, False
        return True, False

    def keep(self, name: str, policy: str) -> None:
        """Start, restart, stop for a restart, or leave one container."""
        record = self.record.look(name)
        if record.run is not None:
            if record.restart is not None and not record.stopping:
                grace = record.restart_grace if record.restart_grace is not None else grace_of(self.pod)
                self.stop.append(Stop(name, grace, record.restart))
            return
        if record.ended is not None and not self.runs_again(record.ended, policy):
            return
        if record.failure is not None:
            self.waiting[name] = record.failure.waiting
            due = retry_at(record)
        elif record.ended is not None:
            due = restart_at(record, record.ended)
            if self.now < due:
                self.waiting[name] = self.crash_loop(name, record, record.ended)
        else:
            due = 0.0
        if self.now >= due:
            self.start.append(name)
            self.waiting.setdefault(name, Waiting(reason="ContainerCreating"))
        else:
            self.times.append(due)

    def crash_loop(self, name: str, record: ContainerRecord, ended: Ended) -> Waiting:
        if ended.reason == "StartError":
            return Waiting(reason="RunContainerError", message=ended.message)
        seconds = record.backoff.seconds if record.backoff else 0.0
        meta = self.pod["metadata"]
        return Waiting(
            reason="CrashLoopBackOff",
            message=f"back-off {seconds:g}s restarting failed container={name} "
            f"pod={meta['name']}_{meta['namespace']}({meta['uid']})",
        )

    @staticmethod
    def runs_again(ended: Ended, policy: str) -> bool:
        return policy == "Always" or (policy == "OnFailure" and ended.exit_code != 0)

    def phase(self) -> Phase:
        records = [self.record.look(c["name"]) for c in self.pod["spec"]["containers"]]
        if any(r.run is None and r.ended is None for r in records):
            return "Pending"
        if any(r.run is not None or (r.ended and self.runs_again(r.ended, self.policy)) for r in records):
            return "Running"
        return self.final_phase()

    def final_phase(self) -> Phase:
        """Succeeded only if every main container has run and ended well."""
        records = [self.record.look(c["name"]) for c in self.pod["spec"]["containers"]]
        done = all(r.run is None and r.ended is not None and r.ended.exit_code == 0 for r in records)
        return "Succeeded" if done else "Failed"

    def ending(self, phase: Phase, why: str) -> Decision:
        """Stop what runs: main and init containers first, then sidecars from the last to the first."""
        grace = grace_of(self.pod)
        running = set(self.record.running)
        if not running:
            return Decision(phase, over=True)
        sidecars = [c["name"] for c in self.pod["spec"].get("initContainers", []) if is_sidecar(c)]
        first = [name for name in running if name not in sidecars]
        victims = first or [next(name for name in reversed(sidecars) if name in running)]
        stops = tuple(Stop(name, grace, why) for name in sorted(victims) if not self.record.look(name).stopping)
        # Until everything has ended the pod keeps the phase that it had.
        return Decision(self.record.phase, stop=stops)
