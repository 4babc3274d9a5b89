"""Spans of a request over gateway and stages, as an OpenTelemetry collector gets them; and nothing where it is off."""

import asyncio
import importlib.util
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from aiohttp import web
from multidict import CIMultiDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from splitplane.adapters.kinds import ROUTE_TABLE
from splitplane.runtime import tracing
from splitplane.runtime.inference import Failure, InferenceError, invalid
from tests.support.gateway_rig import (
    PIPELINE,
    SPLIT,
    WIDTH,
    MemoryCluster,
    StageProcess,
    gateway,
    put_all,
    stages,
    table,
    until,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP; keeps them by service."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[tuple[str, Span]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, trace: str) -> dict[tuple[str, str], Span]:
        return {(service, s.name): s for service, s in list(self.spans) if s.trace_id.hex() == trace}


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            tags = {each.key: each.value.string_value for each in resource.resource.attributes}
            service = f"{tags['service.name']} {tags.get('splitplane.tier', '')}".strip()
            for scope in resource.scope_spans:
                self.server.spans += [(service, span) for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_headers_that_cannot_be_read_are_not_quoted_in_the_log(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tracing.ENDPOINT, collector.url)
    tracing.begin({tracing.ENDPOINT: collector.url}, service="splitplane-gateway")
    try:
        with tracing.serving("infer", {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=" + "x" * 5000}):
            pass
    finally:
        tracing.end()
    assert not caplog.records


@pytest.mark.parametrize("protocol", ["grpc", "http", "v1"])
async def test_a_request_is_one_trace_from_its_caller_over_gateway_and_stages(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
):
    environment = {tracing.ENDPOINT: collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    edge = StageProcess("small-edge", "edge", (0, 3), tracing=environment)
    cloud = StageProcess("small-cloud", "cloud", (1, 3), tracing=environment)
    cluster = MemoryCluster()
    with stages(edge, cloud):
        put_all(cluster, edge, cloud)
        cluster.put(ROUTE_TABLE, table(1, SPLIT))
        tracing.begin(environment, service="splitplane-gateway")
        try:
            async with gateway(cluster, tmp_path) as running:
                await until(running.forwarder.ready)
                header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
                ip = running.settings.pod_ip
                if protocol == "grpc":
                    tensor = triton_grpc.InferInput("frames", [1, WIDTH], "FP32")
                    tensor.set_data_from_numpy(np.ones((1, WIDTH), np.float32))
                    client = triton_grpc.InferenceServerClient(f"{ip}:9000")
                    await client.infer(PIPELINE, [tensor], headers=header)
                    await client.close()
                elif protocol == "v1":
                    url = f"http://{ip}:8080/v1/models/{PIPELINE}:predict"
                    async with (
                        aiohttp.ClientSession() as session,
                        session.post(url, json={"instances": [[1] * WIDTH]}, headers=header) as got,
                    ):
                        assert got.status == 200
                else:
                    sent = {"name": "frames", "shape": [1, WIDTH], "datatype": "FP32", "data": [1] * WIDTH}
                    body = {"inputs": [sent]}
                    url = f"http://{ip}:8080/v2/models/{PIPELINE}/infer"
                    async with (
                        aiohttp.ClientSession() as session,
                        session.post(url, json=body, headers=header) as got,
                    ):
                        assert got.status == 200
        finally:
            await asyncio.to_thread(tracing.end)
        await until(lambda: len(collector.of(TRACE)) >= 13)
    spans = collector.of(TRACE)
    served = {"grpc": "ModelInfer", "http": "infer", "v1": "predict"}[protocol]
    chain = [
        spans["splitplane-gateway", served],
        spans["splitplane-gateway", "hop"],
        spans["splitplane-stage edge", "ModelInfer"],
        spans["splitplane-stage edge", "hop"],
        spans["splitplane-stage cloud", "ModelInfer"],
    ]
    assert chain[0].parent_span_id.hex() == PARENT
    for outer, inner in itertools.pairwise(chain):
        assert inner.parent_span_id == outer.span_id
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano
    for tier, inside in (("edge", chain[2]), ("cloud", chain[4])):
        steps = [spans[f"splitplane-stage {tier}", name] for name in ("queue", "decode", "compute", "encode")]
        assert {step.parent_span_id for step in steps} == {inside.span_id}
        assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in itertools.pairwise(steps))


@pytest.mark.parametrize(
    ("error", "is_error"),
    [
        (invalid("a wrong input"), False),
        (InferenceError(Failure.NOT_FOUND, "no such model"), False),
        (InferenceError(Failure.RESOURCE_EXHAUSTED, "a full queue"), False),
        (web.HTTPRequestTimeout(), False),
        (InferenceError(Failure.UNAVAILABLE, "no route"), True),
        (InferenceError(Failure.DEADLINE_EXCEEDED, "late"), True),
        (web.HTTPServiceUnavailable(), True),
        (ZeroDivisionError(), True),
    ],
    ids=lambda value: "" if isinstance(value, bool) else f"{type(value).__name__} {value}",
)
def test_a_servers_span_is_an_error_where_the_server_is_at_fault(collector, monkeypatch, error, is_error):
    monkeypatch.setenv(tracing.ENDPOINT, collector.url)
    tracing.begin({tracing.ENDPOINT: collector.url}, service="server")
    try:
        with (
            pytest.raises(type(error)),
            tracing.serving("infer", {"traceparent": f"00-{TRACE}-{PARENT}-01"}),
        ):
            raise error
    finally:
        tracing.end()
    span = collector.of(TRACE)["server", "infer"]
    assert (span.status.code == Status.STATUS_CODE_ERROR) is is_error
    assert bool(span.events) is is_error


@pytest.mark.parametrize(
    ("parents", "states", "handed_on"),
    [
        ([f"00-{TRACE}-{PARENT}-01"], ["a=1", "b=2,c=3"], (TRACE, "a=1,b=2,c=3")),
        ([f"00-{TRACE}-{PARENT}-01", f"00-{TRACE[::-1]}-{PARENT}-01"], ["a=1"], (None, None)),
        ([], ["a=1"], (None, None)),
    ],
)
@pytest.mark.parametrize("form", [tuple, CIMultiDict], ids=["grpc", "http"])
def test_a_callers_context_may_come_in_several_lines_but_name_one_parent(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, parents, states, handed_on, form
):
    environment = {tracing.ENDPOINT: collector.url}
    monkeypatch.setenv(tracing.ENDPOINT, collector.url)
    headers = form([*(("traceparent", each) for each in parents), *(("tracestate", each) for each in states)])
    tracing.begin(environment, service="splitplane-gateway")
    try:
        with tracing.serving("infer", headers), tracing.calling("hop") as metadata:
            given = dict(metadata or ())
    finally:
        tracing.end()
    trace, state = handed_on
    assert (given["traceparent"].split("-")[1] == TRACE) == (trace is not None)
    assert given.get("tracestate") == state


def test_nothing_of_opentelemetry_is_imported_while_tracing_is_off():
    code = (
        "import sys; from splitplane.runtime import tracing, oip_grpc, hops; tracing.begin({}, service='x');"
        "\nwith tracing.serving('a', ()), tracing.calling('b') as metadata: tracing.tell({'c': 1.0})"
        "\nassert metadata is None"
        "\nprint([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert importlib.util.find_spec("opentelemetry") is not None
