"""What is no HTTP request that a server takes: it is answered in the protocol's form, and nothing of it is logged."""

import json
import logging
import socket
from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadStatusLine, InvalidHeader

from splitplane.runtime import rest_serving
from splitplane.runtime.rest_errors import LOG_SECONDS, Malformed
from tests.support.fronts import Echo, Fronts, serving

BODY = b'{"inputs": []}'
POST = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: here\r\n"
SIZE = b"Content-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def server() -> Iterator[Fronts]:
    with serving(Echo()) as fronts:
        yield fronts


def answered(server: Fronts, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer after which the server closes the connection."""
    host, port = server.http_address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (POST + b"Authorization: Bearer SECRET\x01TOKEN\r\n\r\n", 400, "no HTTP request"),
        (b"SECRET\r\n\r\n", 400, "no HTTP request"),
        (POST + b"X-Long: " + b"SECRET" * 4000 + b"\r\n\r\n", 400, "no HTTP request"),
        (POST + b"".join(b"X%d: SECRET\r\n" % n for n in range(500)) + b"\r\n", 400, "no HTTP request"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nSECRET\r\nabc\r\n0\r\n\r\n", 400, ""),
        (POST + b"Expect: 200-ok\r\n" + SIZE + b"\r\n" + BODY, 417, "Expect"),
        (POST + b"Content-Encoding: snappy\r\nConnection: close\r\n" + SIZE + b"\r\n" + BODY, 415, "gzip, deflate"),
        (POST + b"Content-Encoding: zstd\r\nConnection: close\r\n" + SIZE + b"\r\n" + BODY, 415, "gzip, deflate"),
        (POST + b"Content-Encoding: br\r\nConnection: close\r\n" + SIZE + b"\r\n" + BODY, 415, "gzip, deflate"),
        (POST + b"Content-Encoding: gzip\r\nConnection: close\r\n" + SIZE + b"\r\n" + BODY, 400, ""),
    ],
    ids=["header", "method", "long", "many", "chunk", "expect", "snappy", "zstd", "br", "gzip"],
)
def test_it_is_refused_in_the_protocols_form_and_nothing_of_it_is_logged(server, caplog, request_, status, says):
    caplog.set_level(logging.DEBUG)
    found, headers, body = answered(server, request_)
    assert (found, headers["content-type"].split(";")[0]) == (status, "application/json")
    (text,) = json.loads(body).values()
    assert says in text
    assert "SECRET" not in text
    assert headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)
    assert "SECRET" not in caplog.text
    assert "Traceback" not in caplog.text


def test_what_follows_a_request_that_is_refused_early_is_not_logged_either(server, caplog):
    caplog.set_level(logging.DEBUG)
    early = POST.replace(b"echo", b"none") + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeSECRET\r\n0\r\n\r\n"
    assert answered(server, early)[0] in (400, 404)
    assert "SECRET" not in caplog.text
    assert "Traceback" not in caplog.text


def test_of_malformed_requests_a_kind_is_told_once_a_minute_with_how_many_there_were(caplog):
    caplog.set_level(logging.INFO)
    now = [100.0]
    malformed = Malformed(logging.getLogger("test"), clock=lambda: now[0])
    for _ in range(5):
        malformed.tell(BadStatusLine("GET SECRET"), "10.0.0.7")
    malformed.tell(InvalidHeader("SECRET"), "10.0.0.8")
    now[0] += LOG_SECONDS
    malformed.tell(BadStatusLine("GET SECRET"), None)
    assert caplog.messages == [
        "a request from 10.0.0.7 is no HTTP that can be read (BadStatusLine)",
        "a request from 10.0.0.8 is no HTTP that can be read (InvalidHeader)",
        "a request from nobody known is no HTTP that can be read (BadStatusLine); 4 more like it before",
    ]


async def test_an_open_connection_keeps_no_answer_in_memory() -> None:
    given = list[web.Response]()

    async def large(_request: web.Request) -> web.Response:
        given.append(web.Response(body=bytes(1 << 20)))
        return given[-1]

    app = web.Application()
    app.router.add_get("/", large)
    server = await rest_serving.serve(app, "127.0.0.1", 0)
    host, port = server.address
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/") as response:
        assert len(await response.read()) == 1 << 20
    assert given[0].body is None
    await server.stop(0)
