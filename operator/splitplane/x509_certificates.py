"""Certificates as pure functions of a key, a name and a time: the operator's authority's and the embedded cluster's.

Where keys are kept, and which clock tells the time, is the callers' matter.
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

EARLIER = dt.timedelta(minutes=5)
"""Certificates hold from a little before now, as clocks differ."""
PEM = serialization.Encoding.PEM
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_key(pem: bytes) -> Key:
    """Raises ``ValueError`` for what is no unencrypted elliptic-curve key."""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return key


def name(user: str, groups: Sequence[str] = ()) -> x509.Name:
    """A subject as Kubernetes reads it: the common name is the user, organisations are its groups."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def authority(subject: x509.Name, key: Key, *, now: dt.datetime, lifetime: dt.timedelta) -> x509.Certificate:
    """A certificate that signs others, and itself."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(subject, subject, key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(key_id, critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def leaf(
    subject: x509.Name,
    key: Key,
    *,
    issuer: x509.Name,
    signer: Key,
    now: dt.datetime,
    lifetime: dt.timedelta,
    client: bool = True,
    server: bool = True,
    addresses: Sequence[str] = (),
) -> x509.Certificate:
    """A certificate of who serves at ``addresses`` (DNS names or IP addresses), who calls, or both."""
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH] * client + [ExtendedKeyUsageOID.SERVER_AUTH] * server
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        _builder(subject, issuer, key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(issuer_id, critical=False)
    )
    if addresses:
        alternatives = x509.SubjectAlternativeName([_general_name(address) for address in addresses])
        # Critical where the subject is empty (RFC 5280, 4.2.1.6).
        builder = builder.add_extension(alternatives, critical=not list(subject))
    return builder.sign(signer, hashes.SHA256())


def flaw(chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], now: dt.datetime) -> str:
    """Why peers that trust these authorities refuse who shows the chain, its own certificate first; empty: they do not.

    Without authorities it is not known whom they trust, and only the certificate's own time counts.
    """
    own, *others = chain
    if not _holds(own, now):
        return f"the certificate is valid from {own.not_valid_before_utc} to {own.not_valid_after_utc}"
    if authorities and not _signed(own, [each for each in (*others, *authorities) if _holds(each, now)], authorities):
        return "no valid authority in ca.crt has signed the certificate, nor one that comes with it"
    return ""


def _signed(
    certificate: x509.Certificate, issuers: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> bool:
    """Whether a path over issuers, each used once, leads to an authority."""
    signers = [each for each in issuers if _has_signed(each, certificate)]
    return any(
        signer in authorities or _signed(signer, [each for each in issuers if each != signer], authorities)
        for signer in signers
    )


def _holds(certificate: x509.Certificate, now: dt.datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: dt.datetime, lifetime: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)
