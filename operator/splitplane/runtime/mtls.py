"""Mutual TLS between a pipeline's pods, with certificates that may be replaced while they serve (docs/security.md).

A pod's certificate, key and authorities lie in a folder in the form of a ``kubernetes.io/tls`` Secret, as cert-manager
writes it: ``tls.crt``, ``tls.key``, ``ca.crt``. Certificates name who a pod is, not where: pods are called by address,
and are what their certificate's DNS name says, ``<role>.<pipeline>.<namespace>.splitplane``. New connections use what
lies in the folder then; those that exist go on with what they began with. What peers would refuse, as no authority of
theirs has signed it or its time is over, does not replace what they take.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from splitplane.domain.peers import peer_name
from splitplane.runtime.environment import SettingsError

if TYPE_CHECKING:
    from cryptography import x509

CHECK_SECONDS = 1.0
"""At most so often the folder is looked at."""

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What lies in the folder, in PEM. Not to be printed: it holds the key."""

    certificate: bytes
    key: bytes
    authorities: bytes


class Identity:
    """A pod's own credentials, and the names of those whom it talks to. Threads may share it."""

    def __init__(
        self,
        folder: Path,
        *,
        pipeline: str,
        namespace: str,
        variable: str = "SPLITPLANE_TLS_DIR",
        signed_by_peers: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``signed_by_peers``: those in ``ca.crt`` sign this pod's certificate, too, as pods trust one another.

        Raises ``SettingsError``, naming the variable that gave the folder, when it holds no usable credentials.
        """
        self.folder, self._pipeline, self._namespace, self._clock = folder, pipeline, namespace, clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._signed_by_peers = signed_by_peers
        self._refused: Credentials | str | None = None
        """What was found last and not used, or why nothing was found: it is told once."""
        try:
            self._credentials = _read(folder)
            _check(self._credentials)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{variable}: {folder}: {error}") from error
        if flaw := self._flaw(self._credentials):
            LOG.warning("%s: %s: who trusts the same authorities refuses it", folder, flaw)

    def name(self, role: str) -> str:
        """The name that this pipeline's pods of a role show."""
        return peer_name(role, self._pipeline, self._namespace)

    def current(self) -> Credentials:
        """The newest usable credentials; another object only when they have changed."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at >= CHECK_SECONDS:
                self._looked_at = now
                self._look()
            return self._credentials

    def _look(self) -> None:
        found: Credentials | None = None
        try:
            found = _read(self.folder)
            if found != self._credentials:
                self._use(found)
        except (OSError, ValueError) as error:
            refused = found or str(error)
            if refused != self._refused:
                self._refused = refused
                LOG.warning("%s: the new certificate is not used, the old one still is: %s", self.folder, error)
        else:
            self._refused = None

    def _use(self, found: Credentials) -> None:
        """Raises ``ValueError`` for what does not go together, or is refused by peers who take the old one."""
        _check(found)
        flaw = self._flaw(found)
        if flaw and not self._flaw(self._credentials):
            raise ValueError(flaw)
        self._credentials = found
        LOG.info("new connections use a new certificate, valid until %s", _chain(found)[0].not_valid_after_utc)
        if flaw:
            LOG.warning("%s: %s: who trusts the same authorities refuses it", self.folder, flaw)

    def _flaw(self, credentials: Credentials) -> str:
        from splitplane import x509_certificates

        authorities = _authorities(credentials) if self._signed_by_peers else ()
        return x509_certificates.flaw(_chain(credentials), authorities, dt.datetime.now(dt.UTC))

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that takes nobody without a certificate of these authorities."""
        given = self.current()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            newest = self.current()
            if newest is given:
                return None
            given = newest
            return _server_configuration(newest)

        return grpc.dynamic_ssl_server_credentials(_server_configuration(given), changed, True)  # type: ignore[arg-type]


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(credentials.authorities, credentials.key, credentials.certificate)


def _server_configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (credentials.key, credentials.certificate)
    return grpc.ssl_server_certificate_configuration([pair], credentials.authorities)


def _read(folder: Path) -> Credentials:
    """Raises ``OSError``."""
    # A kubelet replaces a Secret's files all at once, by a link: through it they are of one version.
    version = (folder / "..data").resolve() if (folder / "..data").exists() else folder
    return Credentials(*((version / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt")))


def _check(credentials: Credentials) -> None:
    """Raises ``ValueError`` for what is no certificate, key and authorities that go together."""
    # Here, for pods without mutual TLS to start without it.
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(credentials.key, None)
    except TypeError as error:
        raise ValueError(f"tls.key: {error}") from error  # it has a password
    if _chain(credentials)[0].public_key() != key.public_key():
        raise ValueError("tls.key is not the key of tls.crt")
    _authorities(credentials)


def _chain(credentials: Credentials) -> "list[x509.Certificate]":
    from cryptography import x509

    return x509.load_pem_x509_certificates(credentials.certificate)


def _authorities(credentials: Credentials) -> "list[x509.Certificate]":
    from cryptography import x509

    return x509.load_pem_x509_certificates(credentials.authorities)
