"""Follows single ConfigMaps and Secrets that pods have mounted: one watch each, however many pods share it.

One object at a time, because that is all that the node authorizer grants.
"""

import asyncio
from collections.abc import Callable

from splitplane.local.agent.api import Api, path_of
from splitplane.local.agent.reflector import Reflector

Key = tuple[str, str, str]
"""Resource (``configmaps`` or ``secrets``), namespace, name."""


class ObjectFollower:
    """Calls back at every change of a followed object, its first sight included."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._callbacks: dict[Key, list[Callable[[], None]]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def follow(self, key: Key, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` from now on; returns what ends that."""
        callbacks = self._callbacks.setdefault(key, [])
        callbacks.append(changed)
        if key not in self._tasks:
            resource, namespace, name = key
            reflector = Reflector(
                self._api,
                path_of(resource, namespace=namespace),
                lambda _change, _item: self._call(key),
                field_selector=f"metadata.name={name}",
            )
            self._tasks[key] = asyncio.create_task(reflector.run(), name=f"follow {'/'.join(key)}")

        def release() -> None:
            callbacks.remove(changed)
            if not callbacks and self._callbacks.get(key) is callbacks:
                del self._callbacks[key]
                self._tasks.pop(key).cancel()

        return release

    def _call(self, key: Key) -> None:
        for callback in list(self._callbacks.get(key, ())):
            callback()

    def close(self) -> None:
        """End all watches."""
        for task in self._tasks.values():
            task.cancel()
