"""Certificates for the pods of pipelines, from the operator's own authority: issued, and renewed long before they end.

Nothing but the authority is kept, with how far its rotation has come: a restarted operator issues anew, which pods take
up without restart.
"""

import base64
import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from splitplane.adapters.cluster import Cluster, Conflict, NotFound
from splitplane.adapters.kinds import SECRET
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller import authority as authorities
from splitplane.controller.authority import Authority, Pair, advance, issue, new_authority
from splitplane.controller.naming import peers_name
from splitplane.controller.objects import Object, annotations_of
from splitplane.controller.pods import labels, owner, tls_secret
from splitplane.domain.peers import ROLES, peer_name
from splitplane.x509_certificates import PEM

AUTHORITY_SECRET = "splitplane-authority"  # noqa: S105 - a name
STEP_ANNOTATION = "splitplane.dev/rotation-step-at"
ASKED_ANNOTATION = "splitplane.dev/rotate-if-older-than"
"""Set by people: a time. An authority from before it is replaced, whatever its age."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Times:
    """Of certificates and their authority."""

    lifetime: dt.timedelta = dt.timedelta(hours=24)
    look: dt.timedelta = dt.timedelta(minutes=1)
    """How old what is known of the authority may be when something is issued."""
    margin: dt.timedelta = dt.timedelta(minutes=10)
    """For clocks that differ, and for what takes a moment."""
    authority: dt.timedelta = authorities.LIFETIME

    @property
    def renew(self) -> dt.timedelta:
        return self.lifetime / 3

    @property
    def settle(self) -> dt.timedelta:
        """Between two steps of a rotation: in it ends what any operator issued that knew only the last step."""
        return self.lifetime + self.look + self.margin


DEFAULT_TIMES = Times()


class Certificates:
    """Keeps the Secrets of pipelines fresh, and the authority too. ``load`` first."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        *,
        now: Callable[[], dt.datetime],
        clock: Callable[[], float] = time.monotonic,
        times: Times = DEFAULT_TIMES,
    ) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._now, self._clock, self._times = now, clock, times
        self._authority: Authority | None = None
        self._looked_at = 0.0
        self._issued: dict[tuple[str, str], tuple[float, Authority]] = {}
        """When, and by what, by the pipeline's uid and role."""

    async def load(self) -> Authority:
        """The authority, made on first use, put back if it was deleted, and one step further where one is due.

        Raises ``ClusterError``; ``ValueError``: a bad Secret.
        """
        while True:
            body, known = await self._known()
            held = advance(known, now=self._now(), settle=self._times.settle, make=self._make, asked=_asked(body))
            if body is None or held != known:
                try:
                    await (self._cluster.create if body is None else self._cluster.apply)(
                        _authority_secret(held, self._namespace, version=_version(body))
                    )
                except Conflict:
                    continue
                _log.info("certificate authority: %s", _told(held))
            self._authority, self._looked_at = held, self._clock()
            return held

    async def _look(self, known: Authority | None) -> Authority:
        try:
            return await self.load()
        except ValueError as error:
            if known is None:
                raise
            _log.error("%s; the last one that could be read is used until then", error)
            self._looked_at = self._clock()
            return known

    async def _known(self) -> tuple[Object | None, Authority]:
        try:
            body = await self._cluster.get(SECRET, AUTHORITY_SECRET, self._namespace)
        except NotFound:
            return None, self._authority or Authority.of(self._make())
        return body, _authority(body)

    def _make(self) -> Pair:
        return new_authority(self._namespace, now=self._now(), lifetime=self._times.authority)

    async def ensure(self, pipeline: InferencePipeline) -> None:
        """Issue what is missing or due. Raises ``ClusterError``."""
        authority = self._authority
        if authority is None or self._clock() - self._looked_at >= self._times.look.total_seconds():
            authority = await self._look(authority)
        for role in ROLES:
            key = (pipeline.metadata.uid, role)
            at, by = self._issued.get(key, (0.0, None))
            if by == authority and self._clock() - at < self._times.renew.total_seconds():
                continue
            await self._cluster.apply(secret(pipeline, role, authority, now=self._now(), lifetime=self._times.lifetime))
            self._issued[key] = (self._clock(), authority)

    def keep_only(self, uids: set[str]) -> None:
        """Forget pipelines that are gone."""
        self._issued = {key: issued for key, issued in self._issued.items() if key[0] in uids}


def secret(
    pipeline: InferencePipeline, role: str, authority: Authority, *, now: dt.datetime, lifetime: dt.timedelta
) -> Object:
    """A fresh certificate for the pods of a role, in cert-manager's form."""
    name, namespace = pipeline.metadata.name, pipeline.metadata.namespace
    pair = issue(authority.signer, peer_name(role, peers_name(pipeline), namespace), now=now, lifetime=lifetime)
    metadata = {
        "name": tls_secret(name, role),
        "namespace": namespace,
        "labels": labels(name, role),
        "ownerReferences": [owner(pipeline)],
    }
    return _secret(metadata, pair, authority)


def _authority_secret(held: Authority, namespace: str, *, version: str) -> Object:
    metadata: Object = {"name": AUTHORITY_SECRET, "namespace": namespace}
    if version:
        metadata["resourceVersion"] = version
    if held.since is not None:
        metadata["annotations"] = {STEP_ANNOTATION: held.since.isoformat()}
    body = _secret(metadata, held.signer, held)
    if held.successor is not None:
        body["data"] |= _encoded({"next.crt": held.successor.certificate, "next.key": held.successor.key})
    return body


def _secret(metadata: Object, pair: Pair, authority: Authority) -> Object:
    files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": b"".join(authority.trusted)}
    return {
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": _encoded(files)
    }  # fmt: skip


def _encoded(files: dict[str, bytes]) -> Object:
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def _authority(body: Object) -> Authority:
    """Raises ``ValueError`` that says what to do."""
    try:
        files = {name: base64.b64decode(content) for name, content in body["data"].items()}
        signer = Pair(files["tls.crt"], files["tls.key"])
        roots = x509.load_pem_x509_certificates(files["ca.crt"])
        successor = Pair(files["next.crt"], files["next.key"]) if "next.crt" in files else None
    except KeyError as error:
        raise ValueError(f"Secret {AUTHORITY_SECRET} lacks {error.args[0]}: delete it, and another is made") from error
    return Authority(signer, tuple(each.public_bytes(PEM) for each in roots), successor, _time(body, STEP_ANNOTATION))


def _asked(body: Object | None) -> dt.datetime | None:
    try:
        return None if body is None else _time(body, ASKED_ANNOTATION)
    except ValueError as error:
        _log.warning("%s; write it as 2026-01-31T12:00:00Z", error)
        return None


def _time(body: Object, annotation: str) -> dt.datetime | None:
    text = annotations_of(body).get(annotation)
    if text is None:
        return None
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"Secret {AUTHORITY_SECRET}: annotation {annotation} is no time: {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _version(body: Object | None) -> str:
    return "" if body is None else str(body["metadata"]["resourceVersion"])


def _told(held: Authority) -> str:
    if held.successor is not None:
        return "its rotation begins: pods are told to trust its successor as well"
    if held.since is not None:
        return "its successor signs from now on; the old root is still trusted"
    return "in use, and the only one that is trusted"
