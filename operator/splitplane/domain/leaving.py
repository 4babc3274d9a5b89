"""How long a pod that serves may take to leave: as long as a request that it accepted last, and what is around.

Kubernetes kills a pod when its grace is over, whatever happens inside; so the grace is the sum of the rest. A pod
leaves as soon as nothing is inside, whatever the grace. Seconds throughout.
"""

REQUEST_SECONDS = 60
"""A request's time from its admission, where its client wants no shorter one."""
UNLISTED_SECONDS = 3
"""Head start of the news that a pod goes, before the pod is told: requests come until every client has heard it."""
PAUSE_SECONDS = 2.0
"""Between a pod's saying that it is not ready and its refusing connections, for those who ask the pod itself."""
DRAIN_SECONDS = REQUEST_SECONDS + 2.0
"""Longest wait for requests inside after that: the time of one that came in the last moment, and of its answer."""
_END_SECONDS = 3
"""For a process to end after its last request, or to cut short those whose time is up."""
GRACE_SECONDS = round(UNLISTED_SECONDS + PAUSE_SECONDS + DRAIN_SECONDS + _END_SECONDS)
"""A pod's ``terminationGracePeriodSeconds``."""
AGE_MARGIN = 1.25
"""A stage that leaves waits by so much longer than requests have taken to come to it."""
_KEPT_SECONDS, _KEPT_REQUESTS = 60.0, 32


class Ages:
    """How long requests of the last while had been on their way, at earlier stages, when they came to a stage.

    The last 32 of them count, and all of the last minute; none from before twice such a time.
    """

    def __init__(self) -> None:
        self._before = self._latest = 0.0
        self._count, self._since = 0, 0.0

    def note(self, seconds: float, now: float) -> None:
        """A request came at ``now``, on any clock that only goes on."""
        if self._count >= _KEPT_REQUESTS and now - self._since >= _KEPT_SECONDS:
            self._before, self._latest, self._count = self._latest, 0.0, 0
        if self._count == 0:
            self._since = now
        self._count += 1
        self._latest = max(self._latest, seconds)

    @property
    def longest(self) -> float:
        return max(self._before, self._latest)


def pause_and_drain(oldest: float, pause: float, drain: float) -> tuple[float, float]:
    """What a stage has of ``pause`` and ``drain`` seconds when requests are ``oldest`` seconds old as they come.

    Those that were sent on their way before the news that it goes come so much later, and find nobody unless it pauses
    for that long. The sum stays, and with it the grace: who comes late has spent as much of its own time already.
    """
    paused = max(pause, min(AGE_MARGIN * oldest, drain))
    return paused, pause + drain - paused
