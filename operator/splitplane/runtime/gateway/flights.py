"""How many requests are inside: the bound on them, and the count by generation that tells when a plan has drained.

A request is inside from its admission to its answer, waiting included. It belongs to a generation only while it is on
its way over a route of that generation; a retry may move it to another.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Flights:
    """``on_drained`` is called with a generation when its last request has come back."""

    def __init__(self, on_drained: Callable[[int], None] = lambda _: None) -> None:
        self._inside = 0
        self._by_generation: Counter[int] = Counter()
        self._on_drained = on_drained

    @property
    def inside(self) -> int:
        return self._inside

    @property
    def by_generation(self) -> Mapping[int, int]:
        """Requests on their way, by generation; generations without any are left out."""
        return dict(self._by_generation)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """While a request is inside. The caller has compared ``inside`` with the bound."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @contextmanager
    def under_way(self, generation: int) -> Iterator[None]:
        """While a request is on its way over a route of ``generation``."""
        self._by_generation[generation] += 1
        try:
            yield
        finally:
            self._by_generation[generation] -= 1
            if not self._by_generation[generation]:
                del self._by_generation[generation]
                self._on_drained(generation)
