"""What Prometheus answers, and what that means: a missing number never passes for a zero."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from splitplane.adapters.metrics import PrometheusMetrics, Queries, interpret
from splitplane.domain.measurements import Error, Idle, Missing, Stale, Value
from splitplane.domain.snapshots import RECENT_SHARES

KEY = ("shop", "tracker")
OWN = {"namespace": "shop", "pipeline": "tracker"}
NOW = 1000.0


def answers(**given: list[tuple[dict[str, str], Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in Queries().texts()}
    for name, series in given.items():
        found[name] = [{"metric": labels, "value": [NOW, str(value)]} for labels, value in series]
    return found


def read(**given: list[tuple[dict[str, str], Any]]) -> Any:
    return interpret(answers(**given), at=NOW, window=30)


def test_a_rate_is_a_value() -> None:
    found = read(arrivals=[(OWN, 2.5)], sampled=[(OWN, NOW - 3)]).of(KEY)
    assert found.arrival_rate == Value(2.5)


def test_a_counter_that_stands_still_is_idle_and_its_quantiles_are_no_error() -> None:
    found = read(arrivals=[(OWN, 0)], sampled=[(OWN, NOW - 3)], p95=[(OWN, "NaN")], scv=[(OWN, "NaN")]).of(KEY)
    assert (found.arrival_rate, found.p95_seconds, found.arrival_scv) == (Idle(), Idle(), Idle())


def test_no_series_at_all_is_missing() -> None:
    assert isinstance(read().of(KEY).arrival_rate, Missing)


def test_one_sample_alone_gives_no_rate_yet() -> None:
    assert read(sampled=[(OWN, NOW - 1)]).of(KEY).arrival_rate == Missing("too few samples yet")


def test_an_old_sample_is_stale_even_if_a_rate_can_be_computed() -> None:
    found = read(arrivals=[(OWN, 0)], sampled=[(OWN, NOW - 60)]).of(KEY)
    assert found.arrival_rate == Stale(60.0)


@pytest.mark.parametrize("sample", ["NaN", "+Inf", "-Inf"])
def test_what_is_not_a_finite_number_is_an_error(sample: str) -> None:
    found = read(
        arrivals=[(OWN, sample)], sampled=[(OWN, NOW)], prices=[({"node": "cloud-1"}, sample)],
        bandwidth=[({**OWN, "source": "edge", "target": "cloud"}, sample)],
    )  # fmt: skip
    assert isinstance(found.of(KEY).arrival_rate, Error)
    assert isinstance(found.of(KEY).bandwidth["edge", "cloud"], Error)
    assert isinstance(found.node_prices["cloud-1"], Error)


def test_a_quantile_that_is_not_a_number_while_requests_come_is_an_error() -> None:
    found = read(arrivals=[(OWN, 1)], sampled=[(OWN, NOW)], p95=[(OWN, "NaN")]).of(KEY)
    assert isinstance(found.p95_seconds, Error)


def test_stage_times_are_by_tier_and_range_and_absent_without_requests() -> None:
    found = read(stages=[
        ({**OWN, "tier": "edge", "range": "0-3"}, 0.02),
        ({**OWN, "tier": "cloud", "range": "3-7"}, "NaN"),
        ({**OWN, "tier": "cloud", "range": "odd"}, 1),
    ])  # fmt: skip
    assert found.of(KEY).stage_seconds == {("edge", 0, 3): Value(0.02)}


def test_the_recent_past_of_a_link_is_told_whole_or_not_at_all() -> None:
    found = read(recent=[
        *(({**OWN, "source": "edge", "target": "cloud", "share": str(share)}, 1e6 * share) for share in RECENT_SHARES),
        ({**OWN, "source": "cloud", "target": "edge", "share": "0.1"}, 5.0),
    ], bandwidth=[({**OWN, "source": "edge", "target": "cloud"}, 2e6)])  # fmt: skip
    assert found.of(KEY).recent == {("edge", "cloud"): tuple(1e6 * share for share in RECENT_SHARES)}


def test_every_query_is_over_all_pipelines_at_once() -> None:
    texts = Queries().texts()
    assert len(texts) == 9
    assert not any(f"{label}=" in text for label in ("namespace", "pipeline") for text in texts.values())


class Prometheus:
    """A server that answers as the test says, and keeps what it was asked."""

    def __init__(self, answer: Callable[[str], tuple[int, bytes]]) -> None:
        self.asked: list[dict[str, list[str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlparse(self.path).query)
                outer.asked.append(asked)
                status, body = answer(asked["query"][0])
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str], tuple[int, bytes]]], Prometheus]]:
    running: list[Prometheus] = []

    def start(answer: Callable[[str], tuple[int, bytes]]) -> Prometheus:
        running.append(Prometheus(answer))
        return running[-1]

    yield start
    for prometheus in running:
        prometheus.server.shutdown()
        prometheus.server.server_close()


def empty(_: str) -> tuple[int, bytes]:
    return 200, json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()


async def test_all_queries_are_asked_at_one_evaluation_time(serve: Any) -> None:
    prometheus = serve(empty)
    metrics = PrometheusMetrics(prometheus.url)
    await metrics.read(1234.5)
    metrics.close()
    assert {asked["time"][0] for asked in prometheus.asked} == {"1234.500"}
    assert len(prometheus.asked) == len(Queries().texts())


async def test_a_server_that_is_not_there_is_asked_once_and_named(serve: Any) -> None:
    gone = serve(empty)
    gone.server.shutdown()
    gone.server.server_close()
    metrics = PrometheusMetrics(gone.url)
    found = await metrics.read(NOW)
    metrics.close()
    assert gone.url in found.failure
    assert "refused" in found.failure.lower()
    assert found.of(KEY).arrival_rate == Error(found.failure)


async def test_a_server_that_refuses_gives_a_failure_not_an_exception(serve: Any) -> None:
    prometheus = serve(lambda _: (503, b"starting"))
    metrics = PrometheusMetrics(prometheus.url)
    found = await metrics.read(NOW)
    metrics.close()
    assert "503" in found.failure
    assert len(prometheus.asked) == 1


async def test_a_server_that_never_answers_does_not_block_the_event_loop(serve: Any) -> None:
    held = threading.Event()

    def hang(_: str) -> tuple[int, bytes]:
        held.wait(60)
        return empty("")

    prometheus = serve(hang)
    metrics = PrometheusMetrics(prometheus.url, timeout_seconds=0.3)
    reading = asyncio.create_task(metrics.read(NOW))
    await asyncio.sleep(0)
    assert not reading.done()
    found = await reading
    held.set()
    metrics.close()
    assert "timed out" in found.failure
