"""``python -m splitplane.runtime.link_target``: the far end of link probes, one per node of a tier.

Kept small, as it runs on every node: neither torch nor numpy nor an HTTP framework, and a probe's payload is not even
parsed.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import grpc.aio
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from splitplane.runtime import link_probe_pb2

LOG = logging.getLogger("splitplane.runtime.link_target")
SERVICE = "splitplane.LinkProbe"
PROBE = f"/{SERVICE}/Probe"
MAX_PAYLOAD_BYTES = 64 << 20
HTTP_PORT, GRPC_PORT = 8080, 9000


async def _probe(_payload: bytes, _context: Any) -> bytes:
    started = time.perf_counter()
    response = link_probe_pb2.ProbeResponse()
    response.server_seconds = time.perf_counter() - started
    return bytes(response.SerializeToString())


def make_grpc_server() -> grpc.aio.Server:
    """The probe service, not yet bound or started."""
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", MAX_PAYLOAD_BYTES),))
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Probe": grpc.unary_unary_rpc_method_handler(_probe)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    return server


class _Pages(BaseHTTPRequestHandler):
    """Health and metrics; there is nothing to load, so a target that answers is ready."""

    timeout = 10.0

    def do_GET(self) -> None:
        content_type, content, status = "application/json", b"", 200
        match self.path:
            case "/v2/health/live":
                content = b'{"live": true}'
            case "/v2/health/ready":
                content = b'{"ready": true}'
            case "/metrics":
                content_type, content = CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
            case path:
                content, status = json.dumps({"error": f"no page {path}"}).encode(), 404
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        """Probes by the second are no news."""


async def run(pod_ip: str, *, http_port: int = HTTP_PORT, grpc_port: int = GRPC_PORT) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``OSError`` or ``RuntimeError`` when a port is taken."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    pages = ThreadingHTTPServer((pod_ip, http_port), _Pages)
    server = make_grpc_server()
    server.add_insecure_port(f"{pod_ip}:{grpc_port}")
    await server.start()
    threading.Thread(target=pages.serve_forever, name="pages", daemon=True).start()
    LOG.info("answering probes on %s:%d", pod_ip, grpc_port)
    await stopping.wait()
    await server.stop(5.0)
    await asyncio.to_thread(pages.shutdown)
    pages.server_close()


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    pod_ip = os.environ.get("SPLITPLANE_POD_IP")
    if not pod_ip:
        LOG.error("cannot start: set SPLITPLANE_POD_IP: the chart's DaemonSet gives it to its pods")
        return os.EX_CONFIG
    asyncio.run(run(pod_ip))
    return 0


if __name__ == "__main__":
    sys.exit(main())
