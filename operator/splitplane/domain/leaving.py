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
