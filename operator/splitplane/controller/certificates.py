"""Certificates for the pods of pipelines, from the operator's own authority: issued, and renewed long before they end.

Nothing but the authority is kept: a restarted operator issues anew, which pods take up without restart.
"""

import base64
import datetime as dt
import logging
import time
from collections.abc import Callable

from splitplane.adapters.cluster import Cluster, Conflict, NotFound
from splitplane.adapters.kinds import SECRET
from splitplane.api.pipelines import InferencePipeline
from splitplane.controller.authority import Pair, issue, new_authority
from splitplane.controller.objects import Object
from splitplane.controller.pods import labels, owner, tls_secret
from splitplane.domain.peers import ROLES, peer_name

AUTHORITY_SECRET = "splitplane-authority"  # noqa: S105 - a name
LIFETIME = dt.timedelta(hours=24)
RENEW_SECONDS = LIFETIME.total_seconds() / 3

_log = logging.getLogger(__name__)


async def load_authority(cluster: Cluster, namespace: str, *, now: dt.datetime) -> Pair:
    """The authority of this installation, made on first use. Raises ``ClusterError``; ``ValueError``: a bad Secret."""
    try:
        return _pair(await cluster.get(SECRET, AUTHORITY_SECRET, namespace))
    except NotFound:
        made = new_authority(f"splitplane {namespace}", now=now)
    try:
        await cluster.create(_secret({"name": AUTHORITY_SECRET, "namespace": namespace}, made, made.certificate))
    except Conflict:
        return _pair(await cluster.get(SECRET, AUTHORITY_SECRET, namespace))
    _log.info("made a certificate authority: Secret %s/%s", namespace, AUTHORITY_SECRET)
    return made


class Certificates:
    """Keeps the Secrets of pipelines fresh."""

    def __init__(
        self,
        cluster: Cluster,
        authority: Pair,
        *,
        now: Callable[[], dt.datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._authority = cluster, authority
        self._now, self._clock = now, clock
        self._issued: dict[tuple[str, str], float] = {}
        """When, by the pipeline's uid and role."""

    async def ensure(self, pipeline: InferencePipeline) -> None:
        """Issue what is missing or due. Raises ``ClusterError``."""
        for role in ROLES:
            key = (pipeline.metadata.uid, role)
            if self._clock() - self._issued.get(key, -RENEW_SECONDS) < RENEW_SECONDS:
                continue
            await self._cluster.apply(secret(pipeline, role, self._authority, now=self._now()))
            self._issued[key] = self._clock()

    def keep_only(self, uids: set[str]) -> None:
        """Forget pipelines that are gone."""
        self._issued = {key: at for key, at in self._issued.items() if key[0] in uids}


def secret(pipeline: InferencePipeline, role: str, authority: Pair, *, now: dt.datetime) -> Object:
    """A fresh certificate for the pods of a role, in cert-manager's form."""
    name, namespace = pipeline.metadata.name, pipeline.metadata.namespace
    pair = issue(authority, peer_name(role, name, namespace), now=now, lifetime=LIFETIME)
    metadata = {
        "name": tls_secret(name, role),
        "namespace": namespace,
        "labels": labels(name, role),
        "ownerReferences": [owner(pipeline)],
    }
    return _secret(metadata, pair, authority.certificate)


def _secret(metadata: Object, pair: Pair, authorities: bytes) -> Object:
    files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authorities}
    data = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data}


def _pair(body: Object) -> Pair:
    try:
        return Pair(*(base64.b64decode(body["data"][name]) for name in ("tls.crt", "tls.key")))
    except KeyError as error:
        raise ValueError(f"Secret {AUTHORITY_SECRET} lacks {error.args[0]}: delete it, and another is made") from error
