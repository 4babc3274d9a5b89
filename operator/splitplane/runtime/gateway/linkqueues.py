"""How much of what requests sent is still on a link, told from outside. Pure: times come in as arguments.

A request is on its way for longer than its message is on the link: it waits for its turn in a stage, and is computed,
and nothing says so before the answer comes. So a message counts from when it may have been handed to the link until it
has passed it, at the link's rate and in the order of sending. Each answer tells when its own message had passed at the
latest: from there on the next ones are reckoned, so an error of the rate does not add up.

Of what a stage sends, the gateway knows when it gave the request to that stage. How long the last requests took from
there to the link tells the rest; before there is any such, a message counts until its answer comes.

The rate is not the one that transfers take, as a dozen that share the link take a dozen times as long. It is the one of
the last message that had the link to itself, as long as those that share it could all have passed at that rate.
"""

from collections import deque
from dataclasses import dataclass
from math import inf

MEMORY = 16
"""How many of the last messages tell how large the next ones may be, and how long they are before the link."""


@dataclass(eq=False, slots=True)
class Message:
    """``at`` is when its request began; ``direct``: it was handed to the link then, and by no stage before it."""

    at: float
    size: int
    direct: bool


class LinkQueue:
    """What crosses one link."""

    def __init__(self) -> None:
        self._messages: dict[Message, None] = {}
        self._passed: deque[tuple[float, float, int]] = deque(maxlen=MEMORY)
        """When they were handed to the link, when they had passed it, and their bytes."""
        self._before: deque[float] = deque(maxlen=MEMORY)
        self._last = -inf
        self._alone: float | None = None

    def begin(self, now: float, size: int | None = None) -> Message:
        """A request begins whose message crosses at once, with so many bytes; ``None``: a stage will send it.

        What that one may have is told by what crossed of late.
        """
        direct = size is not None
        message = Message(now, max((each[2] for each in self._passed), default=0) if size is None else size, direct)
        self._messages[message] = None
        return message

    def end(self, message: Message) -> None:
        """Its request was answered, or given up."""
        del self._messages[message]

    def passed(self, handed: float, at: float, size: int, before_seconds: float | None = None) -> None:
        """A message of so many bytes, handed to the link then, had passed it at that time.

        ``before_seconds``: so long after its request began a stage handed it on.
        """
        self._passed.append((handed, at, size))
        self._last = max(self._last, at)
        if before_seconds is not None:
            self._before.append(before_seconds)

    def told(self, rate: float, handed: float, at: float, size: int) -> None:
        """A message, handed to the link and passed by it at these times, took what it would alone at such a rate."""
        shared = sum(
            other * min(1.0, (at - begun) / (at - handed))
            for begun, end, other in self._all()
            if begun < at and end > handed and (begun, end) != (handed, at)
        )
        most = rate * (size + shared) / size
        self._alone = rate if not shared or self._alone is None else min(max(self._alone, rate), most)

    def forget(self) -> None:
        """The link went down: its rate is unknown."""
        self._alone = None

    def backlog_seconds(self, now: float, rate: float) -> float:
        """How long the link may take for what is on it, where transfers of late took what they do at this rate."""
        rate = max(rate, self._alone or 0.0)
        soonest, latest = min(self._before, default=0.0), max(self._before, default=inf)
        total, free = 0.0, self._last
        for message in self._messages:
            handed = message.at + (0.0 if message.direct else soonest)
            free = max(free, message.at + (0.0 if message.direct else latest)) + message.size / rate
            if handed <= now < free:
                total += min(message.size / rate, free - now)
        return total

    def _all(self) -> list[tuple[float, float, int]]:
        soonest = min(self._before, default=0.0)
        under_way = [(each.at + (0.0 if each.direct else soonest), inf, each.size) for each in self._messages]
        return [*self._passed, *under_way]
