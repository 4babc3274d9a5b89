"""Exports `node_total_hourly_cost` of each node from its annotation, as OpenCost would from a cloud's bill.

A price list for test clusters: `kubectl annotate node NODE splitplane.dev/price-per-hour=2.40`.
"""

import json
import ssl
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ANNOTATION = "splitplane.dev/price-per-hour"


def prices() -> str:
    """The nodes' prices now, in Prometheus' text format."""
    request = urllib.request.Request(
        "https://kubernetes.default.svc/api/v1/nodes",
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=3, context=context) as answer:  # noqa: S310 - the cluster's own API
        nodes = json.load(answer)["items"]
    lines = ["# TYPE node_total_hourly_cost gauge"]
    for node in nodes:
        price = node["metadata"].get("annotations", {}).get(ANNOTATION)
        if price is not None:
            lines.append(f'node_total_hourly_cost{{node="{node["metadata"]["name"]}"}} {float(price)}')
    return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            body, code = prices().encode(), 200
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
