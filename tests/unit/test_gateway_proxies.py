"""Whose request it is behind proxies: nobody gets another's share by what it writes into a header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitplane.runtime.connections import peer_of
from splitplane.runtime.environment import SettingsError
from splitplane.runtime.gateway.proxies import Proxies
from splitplane.runtime.gateway.settings import Settings

TRUSTED = Proxies(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.1.2.3", "203.0.113.9", "203.0.113.9"),
        ("10.1.2.3", "203.0.113.9, 10.9.9.9", "203.0.113.9"),
        ("10.1.2.3", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("fd00::7", "2001:db8::1", "2001:db8::1"),
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "not an address", "not an address"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
    ],
    ids=["one", "two", "invented before", "IPv6", "silent", "odd", "not trusted"],
)
def test_the_nearest_address_that_is_no_trusted_proxy_is_the_client(peer: str, forwarded: str, client: str) -> None:
    assert TRUSTED.client(peer, forwarded) == client


@given(forwarded=st.text())
def test_without_trusted_proxies_the_header_means_nothing(forwarded: str) -> None:
    assert Proxies().client("10.1.2.3", forwarded) == "10.1.2.3"


@given(invented=st.text(), client=st.ip_addresses(network="203.0.113.0/24").map(str))
def test_what_a_client_invents_changes_nothing(invented: str, client: str) -> None:
    assert TRUSTED.client("10.1.2.3", f"{invented},{client}") == client


def test_the_peer_of_a_grpc_call_has_the_same_form_as_that_of_an_http_one() -> None:
    assert peer_of("ipv4:10.0.0.7:51234") == ("10.0.0.7", 51234)
    assert peer_of("ipv6:%5Bfd00::7%5D:51234") == ("fd00::7", 51234)


def test_a_network_that_is_none_is_named() -> None:
    names = ("NAMESPACE", "PIPELINE", "TIER", "POD_NAME", "POD_IP", "ROUTE_TABLE", "STATE_DIR")
    environment = {f"SPLITPLANE_{name}": "x" for name in names}
    with pytest.raises(SettingsError, match=r"SPLITPLANE_TRUSTED_PROXIES: .*10\.0\.0\.0/33"):
        Settings.from_environment({**environment, "SPLITPLANE_TRUSTED_PROXIES": "10.0.0.0/33"})
