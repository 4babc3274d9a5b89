"""Whose request it is where proxies stand between: by ``X-Forwarded-For``, as far as those who wrote it are trusted."""

import ipaddress
from collections.abc import Sequence


class Proxies:
    """Networks whose word is taken. Raises ``ValueError`` that names what is no network."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(network.strip()) for network in networks)

    def client(self, peer: str, forwarded: str) -> str:
        """The nearest address that is no trusted proxy's; ``peer`` itself if it is none.

        Each proxy adds the address that it was called from at the end; what stands before the last trusted one's word
        may be anybody's invention.
        """
        if not self._networks:
            return peer
        client = peer
        for hop in reversed(forwarded.split(",")):
            if not self._trusted(client):
                break
            client = hop.strip() or client
        return client

    def _trusted(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
