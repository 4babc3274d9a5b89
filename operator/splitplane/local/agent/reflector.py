"""A list that follows the API server: list, watch from there, and list again when the stream is lost.

Nothing is lost in between: after a relist, what disappeared meanwhile is reported as deleted.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal

from splitplane.local.agent.api import Api, Object
from splitplane.local.agent.errors import ApiError

log = logging.getLogger(__name__)

Change = Literal["applied", "deleted"]


class Reflector:
    """Keeps `items` (by UID) equal to what the API server has, and calls `notify` for each change."""

    def __init__(
        self, api: Api, path: str, notify: Callable[[Change, Object], None], *, field_selector: str | None = None
    ) -> None:
        self._api = api
        self._path = path
        self._notify = notify
        self._query: dict[str, Any] = {"fieldSelector": field_selector} if field_selector else {}
        self.items: dict[str, Object] = {}
        self.synced = asyncio.Event()
        """Set once the first list has been delivered."""

    async def run(self) -> None:
        """Follow until cancelled. Failures are retried with a growing pause, and logged."""
        pause = 0.0
        while True:
            try:
                version = await self._list()
                pause = 0.0
                await self._watch(version)
            except ApiError as error:
                if error.status == 410:
                    continue
                pause = min(max(0.2, pause * 2), 5.0)
                log.log(logging.INFO if error.retriable else logging.WARNING, "%s; again in %.1f s", error, pause)
                await asyncio.sleep(pause)

    async def _list(self) -> str:
        answer = await self._api.get(self._path, **self._query)
        fresh = {item["metadata"]["uid"]: item for item in answer.get("items", [])}
        gone = [item for uid, item in self.items.items() if uid not in fresh]
        self.items = fresh
        for item in gone:
            self._notify("deleted", item)
        for item in list(fresh.values()):
            self._notify("applied", item)
        self.synced.set()
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        while True:
            async for kind, item in self._api.watch(self._path, resource_version=version, **self._query):
                version = item["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                uid = item["metadata"]["uid"]
                if kind == "DELETED":
                    self.items.pop(uid, None)
                    self._notify("deleted", item)
                else:
                    self.items[uid] = item
                    self._notify("applied", item)
