"""Addresses of pods on this node, each used again as late as possible: a peer may still be calling the last owner."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network


class AddressPool:
    """Hands out loopback addresses of a network, never its first two (network, node) and last."""

    def __init__(self, network: IPv4Network | IPv6Network, taken: Iterable[str] = ()) -> None:
        self._first = int(network.network_address) + 2
        self._count = network.num_addresses - 3
        self._taken = {int(IPv4Address(address)) for address in taken}
        self._next = max(self._taken, default=self._first - 1) + 1 - self._first

    def take(self) -> str:
        """The next free address. Raises ValueError when there is none."""
        for step in range(self._count):
            number = self._first + (self._next + step) % self._count
            if number not in self._taken:
                self._taken.add(number)
                self._next = number + 1 - self._first
                return str(IPv4Address(number))
        raise ValueError("no free pod address on this node")

    def give_back(self, address: str) -> None:
        """An address is free again."""
        self._taken.discard(int(IPv4Address(address)))
