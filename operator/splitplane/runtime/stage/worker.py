"""The one thread that computes, and the bounded queue before it. The event loop never runs torch itself.

One thread, because a pod's compute is one resource: two requests side by side would only slow each other, and the
planner's queueing model is of a single server per replica.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from splitplane.runtime.inference import Failure, InferenceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What the work returned, and the seconds it waited before that."""

    result: T
    queue_seconds: float


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    deadline: float | None
    submitted: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    taken: bool = False
    """The thread has begun with it."""
    dropped: bool = False
    """Nobody waits for it any more, and it had not begun."""


class Worker:
    """Runs work in the order of submission, one piece at a time, on a daemon thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._depth = 0
        self._choosing = threading.Lock()
        """Held while a job becomes taken or dropped: never both."""
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Pieces of work accepted and not yet done, the one that runs included."""
        return self._depth

    async def run(self, work: Callable[[], T], *, deadline: float | None = None) -> Done[T]:
        """Do the work and await it. ``deadline`` is on ``time.monotonic``'s clock.

        Raises :class:`InferenceError`: ``RESOURCE_EXHAUSTED`` at once when the queue is full, ``DEADLINE_EXCEEDED``
        when the time is up before the work's turn comes. Cancelled work leaves the queue at once, unless it runs.
        """
        if self._depth > self._capacity:
            raise InferenceError(
                Failure.RESOURCE_EXHAUSTED,
                f"overloaded: {self._capacity} requests wait already; retry later or elsewhere",
            )
        loop = asyncio.get_running_loop()
        job = _Job(work, deadline, time.perf_counter(), loop, loop.create_future())
        self._depth += 1
        self._jobs.put(job)
        try:
            done: Done[T] = await job.future
        except asyncio.CancelledError:
            with self._choosing:
                job.dropped = not job.taken
            self._depth -= job.dropped
            raise
        return done

    async def close(self, timeout_seconds: float) -> bool:
        """Let the thread end after what is queued, and wait for that; False when it still runs after the time."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._choosing:
                job.taken = not job.dropped
            if job.dropped:
                continue
            result: Done[Any] | BaseException
            try:
                result = self._do(job)
            except BaseException as error:  # whatever it is belongs to the one who waits for it
                result = error
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                job.loop.call_soon_threadsafe(self._finish, job, result)

    @staticmethod
    def _do(job: _Job) -> Done[Any]:
        waited = time.perf_counter() - job.submitted
        if job.deadline is not None and time.monotonic() >= job.deadline:
            raise InferenceError(
                Failure.DEADLINE_EXCEEDED, f"the request's time was up after {waited:.3f} s in the queue"
            )
        return Done(job.work(), waited)

    def _finish(self, job: _Job, result: Done[Any] | BaseException) -> None:
        self._depth -= 1
        if job.future.cancelled():
            return
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
