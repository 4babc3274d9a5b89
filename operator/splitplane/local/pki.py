"""The cluster's own certificates: one authority for Kubernetes, one for etcd, a certificate per component and node."""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitplane.local.files import write_atomically

_AUTHORITY_DAYS = 3650
_LEAF_DAYS = 365


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
        self._files = KeyPair.at(folder, name)
        if self._files.key.exists() and self._files.certificate.exists():
            key = serialization.load_pem_private_key(self._files.key.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError(f"{self._files.key} is not an elliptic-curve key")
            self._key = key
            self._certificate = x509.load_pem_x509_certificate(self._files.certificate.read_bytes())
            return
        self._key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"splitplane {name}", ())
        builder = _builder(subject, subject, self._key.public_key(), _AUTHORITY_DAYS).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = _usage(key_cert_sign=True, crl_sign=True)
        key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        builder = builder.add_extension(usage, critical=True).add_extension(key_id, critical=False)
        self._certificate = builder.sign(self._key, hashes.SHA256())
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
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH] if client else []
        if addresses:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            _builder(_name(user, groups), self._certificate.subject, key.public_key(), _LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if addresses:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(address) for address in addresses]), critical=False
            )
        files = KeyPair.at(folder, name)
        _write(files, builder.sign(self._key, hashes.SHA256()), key)
        return files


def service_account_keys(folder: Path) -> tuple[Path, Path]:
    """The (public, private) key files that sign ServiceAccounts' tokens; made on first use, then kept."""
    public, private = folder / "service-accounts.pub", folder / "service-accounts.key"
    if not (public.exists() and private.exists()):
        key = ec.generate_private_key(ec.SECP256R1())
        write_atomically(private, _key_pem(key))
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        write_atomically(public, pem)
    return public, private


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(files: KeyPair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    os.makedirs(files.key.parent, mode=0o700, exist_ok=True)  # noqa: PTH103 - Path.mkdir ignores mode for parents
    write_atomically(files.key, _key_pem(key))
    write_atomically(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
