"""Exports `node_total_hourly_cost` of each node from its annotation, as OpenCost would from a cloud's bill.

A price list for test clusters: `kubectl annotate node NODE splitplane.dev/price-per-hour=2.40`. A node whose annotation
is no price has none; `splitplane_node_price_invalid` and the log name it, and the other nodes keep theirs.
"""

import json
import logging
import math
import ssl
import urllib.request
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ANNOTATION = "splitplane.dev/price-per-hour"

_log = logging.getLogger("node-prices")
_told: dict[str, str] = {}
"""By node: the wrong annotation that the log has told of."""


def nodes() -> list[dict[str, Any]]:
    """The cluster's nodes. Raises ``OSError`` or ``ValueError`` when the API server does not give them."""
    request = urllib.request.Request(
        "https://kubernetes.default.svc/api/v1/nodes",
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=3, context=context) as answer:  # noqa: S310 - the cluster's own API
        found: list[dict[str, Any]] = json.load(answer)["items"]
    return found


def exposition(found: Iterable[Mapping[str, Any]]) -> str:
    """The nodes' prices in Prometheus' text format."""
    prices, wrong = {}, {}
    for node in found:
        metadata = node["metadata"]
        text = metadata.get("annotations", {}).get(ANNOTATION)
        if text is None:
            continue
        try:
            prices[metadata["name"]] = _price(text)
        except ValueError:
            wrong[metadata["name"]] = text
    _tell(wrong)
    lines = ["# TYPE node_total_hourly_cost gauge"]
    lines += [f'node_total_hourly_cost{{node="{name}"}} {price}' for name, price in prices.items()]
    lines += ["# TYPE splitplane_node_price_invalid gauge"]
    lines += [f'splitplane_node_price_invalid{{node="{name}"}} 1' for name in wrong]
    return "\n".join(lines) + "\n"


def _price(text: str) -> float:
    price = float(text)
    if not (math.isfinite(price) and price >= 0):
        raise ValueError(text)
    return price


def _tell(wrong: Mapping[str, str]) -> None:
    """Once for each wrong annotation, and not at every scrape."""
    for name, text in wrong.items():
        if _told.get(name) != text:
            _log.warning("node %s has no price: its annotation %s=%r is no number from 0", name, ANNOTATION, text)
    _told.clear()
    _told.update(wrong)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            body, code = exposition(nodes()).encode(), 200
        except (OSError, ValueError) as error:  # Prometheus then has no fresh sample, which is what is true
            body, code = f"{error}\n".encode(), 503
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the library's name


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Handler).serve_forever()
