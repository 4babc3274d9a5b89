"""The one thread that computes, and the bounded queue before it. The event loop never runs torch itself.

One thread, because a pod's compute is one resource: two requests side by side would only slow each other, and the
planner's queueing model is of a single server per replica. What the thread may do in one go (a :class:`Batch`) it takes
from the queue together.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from splitplane.runtime.inference import Failure, InferenceError
from splitplane.runtime.stage.progress import Progress

T = TypeVar("T")


class Batch(Protocol):
    """How items are done together. All but ``key`` is called on the compute thread only."""

    @property
    def key(self) -> Hashable:
        """Items of equal keys may be done together."""
        ...

    def most(self) -> int:
        """How many samples to do at once at most."""
        ...

    def patience(self) -> tuple[int, float]:
        """How many samples are worth waiting for, and how many seconds after the first item's submission at most."""
        ...

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """A result for each item; an exception among the results is that item's. What it raises is everybody's."""
        ...


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What the work returned, and the seconds it waited before that."""

    result: T
    queue_seconds: float


@dataclass(slots=True)
class _Job:
    batch: Batch
    item: Any
    samples: int
    deadline: float | None
    submitted: float
    future: asyncio.Future[Any]
    taken: bool = False
    """The thread has begun with it."""
    dropped: bool = False
    """Nobody waits for it any more, and it had not begun."""


class _Alone:
    """Work that is done by itself."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    @property
    def key(self) -> Hashable:
        return id(self)

    def most(self) -> int:
        return 1

    def patience(self) -> tuple[int, float]:
        return 1, 0.0

    def run(self, _items: Sequence[Any]) -> Sequence[Any]:
        return (self._work(),)


class Worker:
    """Runs work in the order of submission, one piece or batch at a time, on a daemon thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._depth = 0
        self.progress = Progress()
        self._choosing = threading.Lock()
        """Held while a job becomes taken or dropped: never both."""
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Pieces of work accepted and not yet done, the one that runs included."""
        return self._depth

    async def run(self, work: Callable[[], T], *, deadline: float | None = None) -> Done[T]:
        """Do the work, by itself, and await it. Raises as :meth:`join` does."""
        return await self.join(_Alone(work), None, 1, deadline=deadline)

    async def join(self, batch: Batch, item: Any, samples: int, *, deadline: float | None = None) -> Done[Any]:
        """Do one item, together with others where that may be. ``deadline`` is on ``time.monotonic``'s clock.

        Raises :class:`InferenceError`: ``RESOURCE_EXHAUSTED`` at once when the queue is full, ``DEADLINE_EXCEEDED``
        when the time is up before the work's turn comes. Cancelled work leaves the queue at once, unless it runs.
        """
        if self._depth > self._capacity:
            raise InferenceError(
                Failure.RESOURCE_EXHAUSTED,
                f"overloaded: {self._capacity} requests wait already; retry later or elsewhere",
            )
        self._loop = asyncio.get_running_loop()
        job = _Job(batch, item, samples, deadline, time.perf_counter(), self._loop.create_future())
        self._depth += 1
        self._jobs.put(job)
        try:
            done: Done[Any] = await job.future
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
        line = _Line(self._jobs)
        while (first := line.pop()) is not None:
            jobs = list(self._begin(line.gather(first)))
            if jobs:
                results = self._do(jobs)
                # The loop may have ended: nobody waits any more.
                with contextlib.suppress(RuntimeError):
                    if self._loop is not None:
                        self._loop.call_soon_threadsafe(self._finish, jobs, results)

    def _do(self, jobs: Sequence[_Job]) -> list[Done[Any] | BaseException]:
        if isinstance(jobs[0].batch, _Alone):  # loading takes as long as it takes
            return _do(jobs)
        samples = sum(job.samples for job in jobs)
        now = time.monotonic()
        self.progress.begin(samples, max(now if job.deadline is None else job.deadline for job in jobs) - now)
        try:
            return _do(jobs)
        finally:
            self.progress.end(samples)

    def _begin(self, jobs: Iterable[_Job]) -> Iterable[_Job]:
        for job in jobs:
            with self._choosing:
                job.taken = not job.dropped
            if job.taken:
                yield job

    def _finish(self, jobs: Sequence[_Job], results: Sequence[Done[Any] | BaseException]) -> None:
        self._depth -= len(jobs)
        for job, result in zip(jobs, results, strict=True):
            if job.future.cancelled():
                continue
            if isinstance(result, BaseException):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)


class _Line:
    """The thread's end of the queue: it looks over those who wait, which the queue itself does not let it."""

    def __init__(self, jobs: "queue.SimpleQueue[_Job | None]") -> None:
        self._jobs = jobs
        self._waiting: deque[_Job] = deque()
        self._ended = False

    def pop(self) -> _Job | None:
        """The next job; waits for one. ``None`` when there will be no more."""
        while not self._waiting:
            if self._ended or (job := self._jobs.get()) is None:
                return None
            self._waiting.append(job)
        return self._waiting.popleft()

    def gather(self, first: _Job) -> list[_Job]:
        """The job with those that may be done together with it; waits for more only while nothing else waits."""
        together, samples, most = [first], first.samples, first.batch.most()
        if samples >= most:
            return together
        worth, seconds = first.batch.patience()
        until = first.submitted + seconds
        while True:
            self._receive()
            for job in list(self._waiting):
                if job.batch.key == first.batch.key and samples + job.samples <= most:
                    self._waiting.remove(job)
                    together.append(job)
                    samples += job.samples
            remaining = until - time.perf_counter()
            if samples >= min(worth, most) or self._waiting or self._ended or remaining <= 0:
                return together
            with contextlib.suppress(queue.Empty):
                self._add(self._jobs.get(timeout=remaining))

    def _receive(self) -> None:
        with contextlib.suppress(queue.Empty):
            while not self._ended:
                self._add(self._jobs.get_nowait())

    def _add(self, job: _Job | None) -> None:
        if job is None:
            self._ended = True
        elif not job.dropped:
            self._waiting.append(job)


def _do(jobs: Sequence[_Job]) -> list[Done[Any] | BaseException]:
    """Results in the jobs' order. A batch that fails as a whole is done again one by one: not all are at fault."""
    now, clock = time.monotonic(), time.perf_counter()
    late = [job.deadline is not None and now >= job.deadline for job in jobs]
    timely = [job for job, is_late in zip(jobs, late, strict=True) if not is_late]
    results = iter(_results(timely))
    return [_too_late(clock - job.submitted) if is_late else _done(next(results), clock - job.submitted)
            for job, is_late in zip(jobs, late, strict=True)]  # fmt: skip


def _results(jobs: Sequence[_Job]) -> list[Any]:
    if not jobs:
        return []
    try:
        return list(jobs[0].batch.run([job.item for job in jobs]))
    except BaseException as error:  # whatever it is belongs to the one who waits for it
        if len(jobs) == 1:
            return [error]
    return [result for job in jobs for result in _results([job])]


def _done(result: Any, waited: float) -> Done[Any] | BaseException:
    return result if isinstance(result, BaseException) else Done(result, waited)


def _too_late(waited: float) -> InferenceError:
    return InferenceError(Failure.DEADLINE_EXCEEDED, f"the request's time was up after {waited:.3f} s in the queue")
