"""How long nothing has come over a connection of gRPC's, which does not tell what of a message has come.

The kernel does: each of this process's sockets is asked for the moment of its last data.
"""

import contextlib
import os
import socket
import struct
import time
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

Peer = tuple[str, int]

_DESCRIPTORS = Path("/proc/self/fd")
_LAST_DATA_RECEIVED = 52
"""Where Linux's ``struct tcp_info`` says how many milliseconds ago the last data came."""
FRESH_SECONDS = 0.5
"""Many calls ask at once, and one look at all sockets serves them all."""


class Silences:
    """Of all connections of this process."""

    def __init__(self) -> None:
        self._seen: dict[Peer, float] = {}
        self._looked = float("-inf")

    def seconds(self, peer: str) -> float:
        """Since data came from gRPC's ``peer``, a moment ago: 0 where the kernel does not tell."""
        now = time.monotonic()
        if now - self._looked > FRESH_SECONDS:
            self._looked, self._seen = now, _look()
        return self._seen.get(peer_of(peer), 0.0)


def peer_of(peer: str) -> Peer:
    """Address and port in what gRPC says: ``ipv4:10.0.0.7:51234``, ``ipv6:%5Bfd00::7%5D:51234``."""
    address, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return address.strip("[]"), int(port) if port.isdecimal() else 0


def _look() -> dict[Peer, float]:
    found: dict[Peer, float] = {}
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.exists() else ():
        # One may be closed meanwhile, or have no peer.
        with contextlib.suppress(OSError, ValueError, struct.error):
            if not entry.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                address, port = connection.getpeername()[:2]
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 2 * _LAST_DATA_RECEIVED)
                (milliseconds,) = struct.unpack_from("=I", told, _LAST_DATA_RECEIVED)
                found[_plain(address), port] = milliseconds / 1000
    return found


def _plain(address: str) -> str:
    """As gRPC names it: a socket for both versions of IP has those of version 4 within version 6."""
    parsed = ip_address(address.partition("%")[0])
    return str(parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else address
