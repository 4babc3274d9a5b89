"""Following objects of a kind for ever: list them, watch from there, list again when too much was missed."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from splitplane.adapters.cluster import Change, Object, Unavailable

_log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)


class Expired(Unavailable):
    """The resource version of a watch is too old: list again."""


async def follow(
    page: Callable[[], Awaitable[Object]],
    stream: Callable[[str], AsyncGenerator[tuple[Any, Object], None]],
    *,
    what: str,
) -> AsyncGenerator[Change, None]:
    """Changes as ``Cluster.watch`` promises them.

    ``page`` reads the whole list; ``stream`` gives (type, object) from a resource version on. Either raises
    :class:`Unavailable` when it breaks, or :class:`Expired` when the version is too old. ``what`` is for the log.
    """
    seen: dict[tuple[str, str], Object] = {}
    failures = 0
    version = ""
    while True:
        try:
            if not version:
                listed = await page()
                for change in _differences(seen, listed["items"]):
                    yield change
                yield Change("SYNCED")
                version = listed["metadata"]["resourceVersion"]
            started = time.monotonic()
            async with contextlib.aclosing(stream(version)) as events:
                async for event_type, body in events:
                    failures = 0
                    version = body["metadata"]["resourceVersion"]
                    if event_type == "BOOKMARK":
                        continue
                    if event_type == "DELETED":
                        seen.pop(_key(body), None)
                    else:
                        seen[_key(body)] = body
                    yield Change(event_type, body)
            if time.monotonic() - started < 1.0:
                raise Unavailable("the watch was closed at once")
        except Expired:
            version = ""
        except Unavailable as error:
            delay = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
            failures += 1
            _log.log(
                logging.INFO if failures < len(_RETRY_SECONDS) else logging.WARNING,
                "watching %s: %s; trying again in %.1f s", what, error, delay,
            )  # fmt: skip
            await asyncio.sleep(delay)


def _key(body: Object) -> tuple[str, str]:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]


def _differences(seen: dict[tuple[str, str], Object], items: list[Object]) -> list[Change]:
    """Changes that lead from ``seen`` to ``items``; ``seen`` is brought up to date."""
    fresh = {_key(item): item for item in items}
    changes = [Change("DELETED", seen.pop(key)) for key in list(seen) if key not in fresh]
    for key, item in fresh.items():
        before = seen.get(key)
        if before is None:
            changes.append(Change("ADDED", item))
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            changes.append(Change("MODIFIED", item))
        seen[key] = item
    return changes
