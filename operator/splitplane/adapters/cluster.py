"""The Kubernetes API as Splitplane needs it: a port that fits on one screen, over plain dictionaries.

``connecting.connect`` gives its implementation (``kubernetes_api``). Errors say what the caller should do next::

    ClusterError
    ├── Conflict       somebody else was faster: read again, decide again
    ├── NotFound       the object (or its namespace) is gone
    ├── Forbidden      tell the user which permission is missing; retrying alone does not help
    ├── Invalid        the API server refused the object: a bug, or a user's value; tell the user
    └── Unavailable    the API server cannot be reached or is busy: retry later
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from splitplane.adapters.kinds import Kind

Object = dict[str, Any]
"""A Kubernetes object as its JSON."""


class ClusterError(Exception):
    """A request to the Kubernetes API failed; the subclass says what to do next."""


class Conflict(ClusterError):  # noqa: N818 - the name of the HTTP status
    """Another writer was faster, or the object exists already. Read again and decide again."""


class NotFound(ClusterError):  # noqa: N818
    """The object, its namespace or its kind does not exist."""


class Forbidden(ClusterError):  # noqa: N818
    """This ServiceAccount lacks a permission. The message names it: tell the user."""


class Invalid(ClusterError):  # noqa: N818
    """The API server refused the object. The message names the field: tell the user."""


class Unavailable(ClusterError):  # noqa: N818
    """The API server cannot be reached or is overloaded. Retry later."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change that a watch saw. ``SYNCED`` (without an object) follows each complete list."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "SYNCED"]
    object: Object = field(default_factory=dict)


class Cluster(Protocol):
    """What Splitplane asks of a Kubernetes cluster. Every method raises :class:`ClusterError`."""

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object:
        """Read one object."""

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> list[Object]:
        """Read all objects of a kind, in one namespace or (``""``) everywhere."""

    def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", name: str = "") -> AsyncIterator[Change]:
        """Present objects as ``ADDED``, then ``SYNCED``, then changes, for ever.

        Reconnects by itself; what was missed meanwhile arrives as changes, deletions included. Raises only
        :class:`Forbidden`, :class:`Invalid` and, when the kind does not exist, :class:`NotFound`.
        """

    async def create(self, body: Object) -> Object:
        """Create an object; :class:`Conflict` when it exists already."""

    async def apply(self, body: Object) -> Object:
        """Server-side apply. A ``metadata.resourceVersion`` in ``body`` is a precondition (:class:`Conflict`)."""

    async def merge(self, kind: Kind, name: str, namespace: str, patch: Mapping[str, Any]) -> Object:
        """Merge a few fields into an object whose other fields are left alone, such as a number of replicas."""

    async def patch_status(
        self, kind: Kind, name: str, namespace: str, status: Mapping[str, Any], *, resource_version: str = ""
    ) -> Object:
        """Merge ``status`` (lists are replaced, ``None`` removes), if the object is still at ``resource_version``."""

    async def delete(self, kind: Kind, name: str, namespace: str = "", *, uid: str = "") -> None:
        """Delete an object and, in the background, its dependents; it is no error if it is gone already."""

    async def create_event(self, regarding: Object, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        """Tell the user, on the object's own page (``kubectl describe``). ``type`` is ``Normal`` or ``Warning``."""
