"""Certificates of the embedded cluster's authority, as Kubernetes and a TLS peer would read them."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from splitplane.local.pki import Authority


def test_a_component_is_a_user_in_groups_that_serves_at_its_addresses(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "kubernetes")
    files = authority.issue(tmp_path, "api", user="api", groups=["system:masters"], addresses=["127.0.0.1", "api"])
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    root = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    for attribute, value in ((NameOID.COMMON_NAME, "api"), (NameOID.ORGANIZATION_NAME, "system:masters")):
        assert [found.value for found in leaf.subject.get_attributes_for_oid(attribute)] == [value]
    verifier = PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName("api"))
    assert verifier.verify(leaf, [])[-1] == root
    assert files.key.stat().st_mode & 0o077 == 0


def test_an_authority_is_found_again_and_what_is_none_is_refused(tmp_path: Path) -> None:
    made = Authority(tmp_path, "etcd").certificate.read_bytes()
    assert Authority(tmp_path, "etcd").certificate.read_bytes() == made
    (tmp_path / "etcd.key").write_text("no key")
    with pytest.raises(ValueError):  # noqa: PT011 - the library's words
        Authority(tmp_path, "etcd")
