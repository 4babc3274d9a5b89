"""Addresses as they may be told: in a log, a status, an event, an error."""

import re
from urllib.parse import parse_qsl, urlsplit

HIDDEN = "..."
_QUERY = re.compile(r"\?[^\s\"'<>)]*=[^\s\"'<>)]*")
_LEAST_SECRET = 6
"""Characters of a value that is worth hiding where it stands by itself; what is shorter is a number or a word."""


def without_secrets(address: str) -> str:
    """An address without its query, which may be a signature that lets anybody read, and without user and password."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query=HIDDEN if parts.query else "", fragment="").geturl()


def hide(text: str, address: str) -> str:
    """What a library or a server said of an address, without the queries, its query and the values of that in there."""
    hidden = _QUERY.sub(f"?{HIDDEN}", text)
    query = urlsplit(address).query
    for value in (query, *(value for _, value in parse_qsl(query))):
        if len(value) >= _LEAST_SECRET:
            hidden = hidden.replace(value, HIDDEN)
    return hidden
