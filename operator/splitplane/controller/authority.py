"""The operator's own certificate authority, for clusters without cert-manager (docs/security.md).

It signs one certificate for the gateway and one for the stages of each pipeline, short-lived and often renewed.
"""

import datetime as dt
from dataclasses import dataclass

from cryptography import x509

from splitplane import x509_certificates as certificates

LIFETIME = dt.timedelta(days=3650)
NOBODY = x509.Name([])
"""Who a pod is says its DNS name: a common name has room for 64 characters only."""


@dataclass(frozen=True, slots=True, repr=False)
class Pair:
    """A certificate and its key in PEM. Not to be printed."""

    certificate: bytes
    key: bytes


def new_authority(name: str, *, now: dt.datetime) -> Pair:
    key = certificates.new_key()
    return _pair(certificates.authority(certificates.name(name), key, now=now, lifetime=LIFETIME), key)


def issue(authority: Pair, dns_name: str, *, now: dt.datetime, lifetime: dt.timedelta) -> Pair:
    """A certificate for client and server use. Raises ``ValueError`` when the authority cannot be read."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer, key = certificates.load_key(authority.key), certificates.new_key()
    made = certificates.leaf(
        NOBODY, key, issuer=issuer.subject, signer=signer, now=now, lifetime=lifetime, addresses=[dns_name]
    )
    return _pair(made, key)


def _pair(certificate: x509.Certificate, key: certificates.Key) -> Pair:
    return Pair(certificate.public_bytes(certificates.PEM), certificates.key_pem(key))
