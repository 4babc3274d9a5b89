"""Results on their way to the next stage take no more memory than there is: requests wait before they are computed."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from splitplane.runtime.memory import limit_bytes, resident_bytes
from splitplane.runtime.stage.room import COPIES, Room, spare_bytes


class Requests:
    """Requests with 10 bytes of inputs whose results are ``size`` bytes, each on its way until it is let go."""

    def __init__(self, room: Room, *, example: int) -> None:
        self.room, self.example = room, example
        self.inside: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, size: int) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.ensure_future(self._pass(name, size))
            await asyncio.sleep(0)

    async def go(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self.tasks[name]
        for _ in range(3):
            await asyncio.sleep(0)

    async def _pass(self, name: str, size: int) -> None:
        async with self.room.held("range", 10, self.example) as held:
            self.inside.append(name)
            held.takes(size)
            await self._ends[name].wait()


async def test_what_has_no_room_waits_its_turn_and_all_is_given_back():
    requests = Requests(Room(100), example=40)
    await requests.come("a", "b", "c", "d", size=40)
    assert requests.inside == ["a", "b"]
    await requests.go("b")
    assert requests.inside == ["a", "b", "c"]
    await requests.go("a", "c", "d")
    assert requests.room.free == 100


async def test_the_first_results_tell_what_later_ones_take():
    requests = Requests(Room(100), example=90)
    await requests.come("a", "b", "c", size=20)
    assert requests.inside == ["a", "b", "c"], "known as soon as the first is computed"
    await requests.go("a", "b", "c")
    await requests.come("d", "e", size=80)
    assert requests.inside[3:] == ["d"], "it is larger than those before it, and so may the next one be"
    await requests.go("d", "e")
    assert requests.room.free == 100


@pytest.mark.parametrize("capacity", [0, 30])
async def test_a_result_larger_than_all_there_is_goes_alone(capacity: int):
    requests = Requests(Room(capacity), example=50)
    await requests.come("a", "b", size=50)
    assert requests.inside == ["a"]
    await requests.go("a")
    assert requests.inside == ["a", "b"]
    await requests.go("b")
    assert requests.room.free == capacity


async def _raise() -> None:
    raise ValueError


@pytest.mark.parametrize("ending", [_raise, asyncio.Event().wait])
async def test_whoever_fails_or_is_cancelled_gives_back_what_it_had(ending: Callable[[], Awaitable[object]]):
    room = Room(100)

    async def one() -> None:
        async with room.held("range", 10, 60):
            await ending()

    tasks = [asyncio.ensure_future(one()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert room.free == 100


def test_there_is_room_for_half_of_what_the_process_could_still_take():
    assert 0 < resident_bytes() < limit_bytes()
    assert spare_bytes() == pytest.approx((limit_bytes() - resident_bytes()) / 2 / COPIES, rel=0.05)
