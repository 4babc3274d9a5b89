"""The operator's own certificate authority, for clusters without cert-manager, and its rotation. Pure.

It signs one certificate for the gateway and one for the stages of each pipeline, short-lived and often renewed.

A rotation takes three steps, each one write of one Secret, so that an operator may die between any two:

1. *Announced*: a successor exists and is trusted; the old key still signs.
2. *Switched*: the successor signs; the old root is still trusted.
3. The old root is trusted no longer.

Between two steps lies more than a certificate's whole life, in which everything is issued anew at once. A pod's
certificate and the roots that it trusts come in one piece, so whoever shows a certificate that has not ended yet has
also read the roots that came with it: nobody meets a signer that it does not know, however late its volume was renewed.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509

from splitplane import x509_certificates as certificates

LIFETIME = dt.timedelta(days=365)
ROTATION_SHARE = 2 / 3
"""Of an authority's life, after which its rotation begins."""
NOBODY = x509.Name([])
"""Who a pod is says its DNS name: a common name has room for 64 characters only."""


@dataclass(frozen=True, slots=True, repr=False)
class Pair:
    """A certificate and its key in PEM. Not to be printed."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """What signs, what is trusted, and how far a rotation has come. Not to be printed."""

    signer: Pair
    trusted: tuple[bytes, ...]
    """Roots in PEM, the signer's first."""
    successor: Pair | None = None
    since: dt.datetime | None = None
    """When the last step of the rotation under way was taken; ``None``: none is under way."""

    @classmethod
    def of(cls, signer: Pair) -> "Authority":
        return cls(signer, (signer.certificate,))


def new_authority(name: str, *, now: dt.datetime, lifetime: dt.timedelta = LIFETIME) -> Pair:
    """Named with its time: peers look for issuers by name, and trust two during a rotation."""
    key = certificates.new_key()
    subject = certificates.name(f"splitplane {now:%Y-%m-%dT%H:%M:%S.%fZ}", [name])
    return _pair(certificates.authority(subject, key, now=now, lifetime=lifetime), key)


def issue(signer: Pair, dns_name: str, *, now: dt.datetime, lifetime: dt.timedelta) -> Pair:
    """A certificate for client and server use. Raises ``ValueError`` when the signer cannot be read."""
    issuer, key = x509.load_pem_x509_certificate(signer.certificate), certificates.new_key()
    made = certificates.leaf(
        NOBODY, key, issuer=issuer.subject, signer=certificates.load_key(signer.key), now=now, lifetime=lifetime,
        addresses=[dns_name],
    )  # fmt: skip
    return _pair(made, key)


def advance(
    held: Authority,
    *,
    now: dt.datetime,
    settle: dt.timedelta,
    make: Callable[[], Pair],
    asked: dt.datetime | None = None,
) -> Authority:
    """The next step if one is due, else ``held`` itself; several may be due one after another.

    ``settle`` is the time between two steps, longer than any certificate lives; ``make`` makes an authority. A signer
    made before ``asked`` is replaced whatever its age. Raises ``ValueError`` when the signer cannot be read.
    """
    root = x509.load_pem_x509_certificate(held.signer.certificate)
    if now >= root.not_valid_after_utc:  # nobody ran for all that time: what it signed has ended too
        return Authority.of(held.successor or make())
    if held.since is None:
        made, end = root.not_valid_before_utc + certificates.EARLIER, root.not_valid_after_utc
        if now < made + ROTATION_SHARE * (end - made) and not (asked is not None and made < asked <= now):
            return held
        successor = make()
        return Authority(held.signer, (*held.trusted, successor.certificate), successor, now)
    if now < held.since + settle:
        return held
    if held.successor is None:
        return Authority.of(held.signer)
    others = tuple(each for each in held.trusted if each != held.successor.certificate)
    return replace(
        held, signer=held.successor, trusted=(held.successor.certificate, *others), successor=None, since=now
    )


def _pair(certificate: x509.Certificate, key: certificates.Key) -> Pair:
    return Pair(certificate.public_bytes(certificates.PEM), certificates.key_pem(key))
