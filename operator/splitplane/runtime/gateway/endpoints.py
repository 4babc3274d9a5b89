"""Which pods of which stage may take a request now. Pure bookkeeping: times come in as arguments.

A pod that the cluster reports as ready is a *candidate*. It is *admitted* once it has answered a health check itself.
A failed call ejects it at once, for longer each time that failures follow each other, and only a new answer to a health
check brings it back: so no request has to find out whether a lost pod has returned.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import inf

FIRST_EJECTION_SECONDS = 0.25
LONGEST_EJECTION_SECONDS = 10.0
CHECK_RETRY_SECONDS = 0.5
DOUBTS = 3
UNANSWERED_CHECK_SECONDS = 3.0
SLOW_SECONDS, LONGEST_SLOW_SECONDS = 30.0, 300.0
"""How long a replica that is much slower, or errs where others do not, is left out: for each time in a row."""
SLOW_SHARE = 1 / 3
"""Of a stage's replicas, at most so many are left out so, but one of two; none while more are left out already."""
ERRORS, PARDON = 5.0, 0.25
"""A replica is left out that has so many errors which others had not; each answer takes so much of one off."""
MAX_ALTERNATES = 2
"""Further addresses that a route carries per stage, for the sender to fall back on."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What the gateway needs of a stage's pod. ``ready`` is false as soon as it is being deleted."""

    name: str
    stage: str
    address: str
    ready: bool


@dataclass(slots=True)
class Endpoint:
    """A ready pod of a stage; ``address`` is host:port of its gRPC server."""

    pod: Pod
    admitted: bool = False
    check_at: float = -inf
    out_until: float = -inf
    """Left out till then, however healthy it says it is."""
    failures: int = 0
    slow: int = 0
    errors: float = 0.0
    erring: int = 0
    """How many times in a row it was left out for its errors."""
    process: str = ""
    busy_seconds: float = 0.0
    """The identity of the process there, and how long it had been computing without an end, as it told them last."""
    hanging_seconds: float = inf
    """Left out for being busy so long or longer, until it no longer is."""
    outstanding: int = 0
    used: int = 0
    """Turn of its last use: of equally loaded endpoints the one that has rested longest comes first."""
    caller: str = ""
    """Address of the endpoint that a request came from then; none for a first stage, which the gateway calls."""

    @property
    def address(self) -> str:
        return self.pod.address


class Endpoints:
    """All endpoints of one pipeline by address.

    ``on_change`` is called when the admitted ones change, ``on_check`` when one has to be checked earlier than before.
    """

    def __init__(
        self, on_change: Callable[[], None] = lambda: None, on_check: Callable[[], None] = lambda: None
    ) -> None:
        self._by_address: dict[str, Endpoint] = {}
        self._turns = count(1)
        self._on_change = on_change
        self._on_check = on_check

    def replace(self, pods: Iterable[Pod]) -> None:
        """The cluster's whole list: candidates that are not in it are gone."""
        ready = {pod.address: pod for pod in pods if pod.ready}
        for address in [address for address in self._by_address if address not in ready]:
            self._remove(address)
        for pod in ready.values():
            self.update(pod)

    def update(self, pod: Pod) -> None:
        """The cluster reported one pod, which may have become ready or have ceased to be."""
        known = self._by_address.get(pod.address)
        if not pod.ready:
            # A pod that has lost its address is found by name.
            for address in [a for a, e in self._by_address.items() if e.pod.name == pod.name]:
                self._remove(address)
        elif known is None or known.pod != pod:
            if known is not None:
                self._remove(pod.address)
            self._by_address[pod.address] = Endpoint(pod)
            self._on_check()

    def delete(self, name: str) -> None:
        """The cluster deleted a pod."""
        for address in [address for address, endpoint in self._by_address.items() if endpoint.pod.name == name]:
            self._remove(address)

    def take_due(self, now: float) -> list[Endpoint]:
        """Endpoints that should be asked for their health now; each is handed out again only after a while."""
        due = [e for e in self._by_address.values() if not e.admitted and e.check_at <= now]
        for endpoint in due:
            endpoint.check_at = now + UNANSWERED_CHECK_SECONDS
        return due

    def next_check(self) -> float:
        """When the next one is due; infinity when all are admitted."""
        return min((e.check_at for e in self._by_address.values() if not e.admitted), default=inf)

    def checked(self, endpoint: Endpoint, *, healthy: bool, now: float) -> None:
        """A health check of ``endpoint`` has ended. Ignored if the pod has gone meanwhile."""
        if self._by_address.get(endpoint.address) is not endpoint:
            return
        if healthy and not endpoint.admitted:
            if now < endpoint.out_until:
                return
            if endpoint.busy_seconds >= endpoint.hanging_seconds:
                self._eject(endpoint, now + CHECK_RETRY_SECONDS)
                return
            endpoint.admitted, endpoint.out_until, endpoint.hanging_seconds = True, -inf, inf
            self._on_change()
        elif not healthy:
            endpoint.out_until = -inf
            self._eject(endpoint, now + CHECK_RETRY_SECONDS)

    def succeeded(self, address: str) -> None:
        """A call to the endpoint was answered."""
        endpoint = self._by_address.get(address)
        if endpoint is not None and endpoint.admitted:
            endpoint.failures = 0
            endpoint.errors = max(0.0, endpoint.errors - PARDON)
            if not endpoint.errors:
                endpoint.erring = 0

    def failed(self, address: str, now: float) -> None:
        """A call to the endpoint failed in a way that speaks against the endpoint itself."""
        endpoint = self._by_address.get(address)
        if endpoint is not None and endpoint.admitted:
            pause = min(FIRST_EJECTION_SECONDS * 2**endpoint.failures, LONGEST_EJECTION_SECONDS)
            endpoint.failures += 1
            self._eject(endpoint, now + pause)

    def doubted(self, address: str, now: float) -> None:
        """A call over several endpoints failed, perhaps because of this one: the third time in a row ejects it."""
        endpoint = self._by_address.get(address)
        if endpoint is not None and endpoint.admitted:
            endpoint.failures += 1
            if endpoint.failures >= DOUBTS:
                self.failed(address, now)

    def judged(self, address: str, now: float, *, slow: bool) -> float:
        """The endpoint was compared with the others of its stage. Seconds that it is left out for; 0: it is not."""
        endpoint = self._by_address.get(address)
        if endpoint is None or not endpoint.admitted:
            return 0.0
        if not slow:
            endpoint.slow = max(0, endpoint.slow - 1)
            return 0.0
        if not self._dispensable(endpoint):
            return 0.0
        endpoint.slow += 1
        return self._leave_out(endpoint, now, endpoint.slow)

    def erred(self, address: str, now: float) -> float:
        """A request got an error here and its answer at another replica. Seconds that it is left out for; 0: it is not.

        A health check cannot see such a fault, so time brings it back; then the next error is enough.
        """
        endpoint = self._by_address.get(address)
        if endpoint is None or not endpoint.admitted:
            return 0.0
        endpoint.errors = min(endpoint.errors + 1, ERRORS)
        if endpoint.errors < ERRORS or not self._dispensable(endpoint):
            return 0.0
        endpoint.erring += 1
        endpoint.errors -= 1
        return self._leave_out(endpoint, now, endpoint.erring)

    def overdue(self, address: str, patience: float, now: float) -> bool:
        """A request waits here for longer than ``patience``. Says whether that is because the endpoint hangs: what it
        computes has been running for as long.

        Then it is left out until it gets on, unless it is the last of its stage.
        """
        endpoint = self._by_address.get(address)
        if endpoint is None or endpoint.busy_seconds < patience:
            return False
        stage = endpoint.pod.stage
        if endpoint.admitted and self.ready(stage) > 1:
            endpoint.hanging_seconds = patience
            self._eject(endpoint, now + CHECK_RETRY_SECONDS)
        return True

    def is_hanging(self, address: str) -> bool:
        """Whether it is left out for that."""
        endpoint = self._by_address.get(address)
        return endpoint is not None and endpoint.hanging_seconds < inf

    def pick(self, stage: str, avoid: Collection[str] = (), caller: str = "") -> tuple[str, ...]:
        """Admitted addresses of a stage, least loaded first, with at most ``MAX_ALTERNATES``; ``avoid`` is left out.

        Each failure in a row counts as a request outstanding: a fast failure must not attract more. Of equally loaded
        ones those that were called last by this ``caller``, an endpoint of the stage before, come after the others:
        stages with as many replicas would else take turns in step, each with the same one for ever.
        """
        free = [e for e in self._by_address.values() if e.admitted and e.pod.stage == stage and e.address not in avoid]
        free.sort(key=lambda e: (e.outstanding + e.failures, bool(caller) and e.caller == caller, e.used))
        return tuple(e.address for e in free[: 1 + MAX_ALTERNATES])

    def begin(self, addresses: Iterable[str]) -> None:
        """A request was sent over these endpoints, one after the other."""
        caller = ""
        for address in addresses:
            if (endpoint := self._by_address.get(address)) is not None:
                endpoint.outstanding += 1
                endpoint.used, endpoint.caller = next(self._turns), caller
            caller = address

    def end(self, addresses: Iterable[str]) -> None:
        """It came back, or will not. An endpoint that was replaced meanwhile is not brought below zero."""
        for address in addresses:
            if (endpoint := self._by_address.get(address)) is not None:
                endpoint.outstanding = max(0, endpoint.outstanding - 1)

    @contextmanager
    def in_use(self, addresses: Iterable[str]) -> Iterator[None]:
        """A request is under way over these endpoints."""
        self.begin(addresses)
        try:
            yield
        finally:
            self.end(addresses)

    def ready(self, stage: str) -> int:
        """Number of admitted endpoints of a stage."""
        return sum(1 for e in self._by_address.values() if e.admitted and e.pod.stage == stage)

    def healthy(self, stage: str) -> int:
        """Number of those and of the ones that are left out for being slow, or for erring, though they answer."""
        return sum(1 for e in self._by_address.values() if e.pod.stage == stage and (e.admitted or e.out_until > -inf))

    def get(self, address: str) -> Endpoint | None:
        return self._by_address.get(address)

    def _dispensable(self, endpoint: Endpoint) -> bool:
        """Whether the stage can do without this replica: no more than a share are out, or one of two."""
        stage = [e for e in self._by_address.values() if e.pod.stage == endpoint.pod.stage]
        out = sum(not e.admitted for e in stage) + 1
        return out < len(stage) and out <= max(SLOW_SHARE * len(stage), 1)

    def _leave_out(self, endpoint: Endpoint, now: float, times: int) -> float:
        pause = min(SLOW_SECONDS * times, LONGEST_SLOW_SECONDS)
        endpoint.out_until = now + pause
        self._eject(endpoint, endpoint.out_until)
        return pause

    def _eject(self, endpoint: Endpoint, until: float) -> None:
        endpoint.check_at = until
        self._on_check()
        if endpoint.admitted:
            endpoint.admitted = False
            self._lost(endpoint)

    def _remove(self, address: str) -> None:
        endpoint = self._by_address.pop(address)
        if endpoint.admitted:
            self._lost(endpoint)

    def _lost(self, endpoint: Endpoint) -> None:
        stage = [e for e in self._by_address.values() if e.pod.stage == endpoint.pod.stage]
        if not any(e.admitted for e in stage):
            # One that is slow, or errs at times, or gets on late, is better than none.
            for left_out in (e for e in stage if e.out_until > -inf or e.hanging_seconds < inf):
                left_out.out_until = left_out.check_at = -inf
                left_out.hanging_seconds = inf
                self._on_check()
        self._on_change()
