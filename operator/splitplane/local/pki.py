"""The cluster's own certificates: one authority for Kubernetes, one for etcd, a certificate per component and node."""

import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from splitplane import x509_certificates as certificates
from splitplane.local.files import write_atomically

_AUTHORITY_LIFETIME = dt.timedelta(days=3650)
_LEAF_LIFETIME = dt.timedelta(days=365)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, as files in PEM."""

    certificate: Path
    key: Path

    @classmethod
    def at(cls, folder: Path, name: str) -> "KeyPair":
        return cls(folder / f"{name}.crt", folder / f"{name}.key")


class Authority:
    """A certificate authority that lives in a folder; made on first use, then kept."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises ``ValueError`` for files that are no certificate and key."""
        self._files = KeyPair.at(folder, name)
        if self._files.key.exists() and self._files.certificate.exists():
            self._key = certificates.load_key(self._files.key.read_bytes())
            self._certificate = x509.load_pem_x509_certificate(self._files.certificate.read_bytes())
            return
        self._key = certificates.new_key()
        subject = certificates.name(f"splitplane {name}")
        self._certificate = certificates.authority(subject, self._key, now=_now(), lifetime=_AUTHORITY_LIFETIME)
        _write(self._files, self._certificate, self._key)

    @property
    def certificate(self) -> Path:
        return self._files.certificate

    def issue(
        self,
        folder: Path,
        name: str,
        *,
        user: str,
        groups: Sequence[str] = (),
        addresses: Sequence[str] = (),
        client: bool = True,
    ) -> KeyPair:
        """Write a fresh certificate for ``user`` in ``groups``; with ``addresses`` it serves as a server's too."""
        key, files = certificates.new_key(), KeyPair.at(folder, name)
        made = certificates.leaf(
            certificates.name(user, groups), key, issuer=self._certificate.subject, signer=self._key, now=_now(),
            lifetime=_LEAF_LIFETIME, client=client, server=bool(addresses), addresses=addresses,
        )  # fmt: skip
        _write(files, made, key)
        return files


def service_account_keys(folder: Path) -> tuple[Path, Path]:
    """The (public, private) key files that sign ServiceAccounts' tokens; made on first use, then kept."""
    public, private = folder / "service-accounts.pub", folder / "service-accounts.key"
    if not (public.exists() and private.exists()):
        key = certificates.new_key()
        write_atomically(private, certificates.key_pem(key))
        pem = key.public_key().public_bytes(certificates.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        write_atomically(public, pem)
    return public, private


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _write(files: KeyPair, certificate: x509.Certificate, key: certificates.Key) -> None:
    os.makedirs(files.key.parent, mode=0o700, exist_ok=True)  # noqa: PTH103 - Path.mkdir ignores mode for parents
    write_atomically(files.key, certificates.key_pem(key))
    write_atomically(files.certificate, certificate.public_bytes(certificates.PEM))
