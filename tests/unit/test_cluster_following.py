"""Whoever follows objects learns of every change in the end, however often the stream breaks."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from splitplane.adapters import following
from splitplane.adapters.cluster import Change, Object, Unavailable
from splitplane.adapters.following import Expired, follow


def thing(name: str, version: int) -> Object:
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": str(version)}}


def listed(version: int, *items: Object) -> Object:
    return {"metadata": {"resourceVersion": str(version)}, "items": list(items)}


class Server:
    """Answers from a script: lists, and streams that end in an error, if any."""

    def __init__(self, lists: list[Object | Exception], streams: list[list[Any]]) -> None:
        self.lists, self.streams = lists, streams
        self.asked: list[str] = []

    async def page(self) -> Object:
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def stream(self, version: str) -> AsyncGenerator[tuple[Any, Object], None]:
        self.asked.append(version)
        for event in self.streams.pop(0) if self.streams else [asyncio.Event()]:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, asyncio.Event):
                await event.wait()  # never set: the stream stays open until it is cancelled
            else:
                yield event


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_RETRY_SECONDS", (0.0, 0.0))


async def changes(server: Server, count: int) -> list[tuple[str, str]]:
    found: list[Change] = []
    async with asyncio.timeout(60):
        async for change in follow(server.page, server.stream, what="things"):
            found.append(change)
            if len(found) == count:
                break
    return [(change.type, change.object["metadata"]["name"] if change.object else "") for change in found]


async def test_what_exists_comes_first_and_then_what_changes() -> None:
    server = Server([listed(5, thing("a", 3))], [[("MODIFIED", thing("a", 6)), ("DELETED", thing("a", 7))]])
    assert await changes(server, 4) == [("ADDED", "a"), ("SYNCED", ""), ("MODIFIED", "a"), ("DELETED", "a")]
    assert server.asked == ["5"]


async def test_a_broken_stream_goes_on_from_the_last_version_bookmarks_included() -> None:
    server = Server(
        [Unavailable("starting"), listed(5)],
        [[("BOOKMARK", thing("", 9)), Unavailable("gone")], [], [("ADDED", thing("b", 10))]],
    )
    assert await changes(server, 2) == [("SYNCED", ""), ("ADDED", "b")]
    assert server.asked == ["5", "9", "9"]


async def test_after_too_long_a_gap_a_new_list_tells_what_was_missed_deletions_included() -> None:
    server = Server(
        [
            listed(5, thing("a", 1), thing("b", 2), thing("c", 3)),
            listed(50, thing("b", 2), thing("c", 40), thing("d", 41)),
        ],
        [[Expired("too old")], [("ADDED", thing("e", 51))]],
    )
    told = await changes(server, 9)
    assert told[:4] == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c"), ("SYNCED", "")]
    assert told[4:] == [("DELETED", "a"), ("MODIFIED", "c"), ("ADDED", "d"), ("SYNCED", ""), ("ADDED", "e")]
