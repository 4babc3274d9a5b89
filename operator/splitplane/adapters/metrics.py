"""What Prometheus knows of all pipelines, read at one evaluation time with a fixed number of queries.

An answer is never taken for a number that it is not: no series is :class:`Missing`, an old sample is :class:`Stale`,
NaN and infinities are :class:`Error`, and only a counter that exists and did not move is :class:`Idle`.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from splitplane.domain.measurements import Error, Idle, Measurement, Missing, Stale, Value
from splitplane.domain.snapshots import RECENT_SECONDS, RECENT_SHARES

PipelineKey = tuple[str, str]
"""Namespace and name of a pipeline."""

_OWN = "namespace, pipeline"
# Without a lower limit a scrape's own jitter would be taken for age.
_FRESH_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class PipelineMetrics:
    """Measurements of one pipeline. Rates are per second, times in seconds.

    ``stage_seconds`` maps (tier, first cut, last cut) to the mean compute time of that range; ``bandwidth``
    (bytes per second), ``delay`` (one-way) and ``recent`` (bandwidths of the last hour, ``Link.recent``) are by
    (source tier, target tier).
    """

    arrival_rate: Measurement
    arrival_scv: Measurement
    p95_seconds: Measurement
    stage_seconds: Mapping[tuple[str, int, int], Measurement] = field(default_factory=dict)
    bandwidth: Mapping[tuple[str, str], Measurement] = field(default_factory=dict)
    delay: Mapping[tuple[str, str], Measurement] = field(default_factory=dict)
    recent: Mapping[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """All that was read in one go. ``failure`` is what went wrong when Prometheus could not be asked at all.

    ``node_prices`` maps a node's name to its price in currency units per hour.
    """

    time: float
    pipelines: Mapping[PipelineKey, PipelineMetrics] = field(default_factory=dict)
    node_prices: Mapping[str, Measurement] = field(default_factory=dict)
    failure: str = ""

    def of(self, key: PipelineKey) -> PipelineMetrics:
        """The measurements of one pipeline; typed absences when there are none."""
        known = self.pipelines.get(key)
        if known is not None:
            return known
        absent: Measurement = Error(self.failure) if self.failure else Missing("no series of this pipeline yet")
        return PipelineMetrics(arrival_rate=absent, arrival_scv=absent, p95_seconds=absent)


class Metrics(Protocol):
    """Where measurements come from."""

    async def read(self, at: float) -> MetricsSnapshot:
        """Everything as it was at ``at`` (seconds since the epoch). Never raises: failures are in the answer."""


@dataclass(frozen=True, slots=True)
class Queries:
    """The PromQL texts, for windows in seconds; each aggregates over all pipelines at once.

    ``demand_window`` is short, so that a change of load, and of the p95 under it, is seen soon; ``window`` is longer,
    for the mean times of stages.
    Both should span at least four scrapes.
    """

    demand_window: int = 30
    window: int = 60

    def texts(self) -> dict[str, str]:
        def rate(name: str, window: int, by: str = _OWN) -> str:
            return f"sum by ({by}) (rate({name}[{window}s]))"

        admitted = "splitplane_requests_admitted_total"
        rejected = 'splitplane_requests_completed_total{outcome="rejected"}'
        ranges = f"{_OWN}, tier, range"
        stage = "splitplane_stage_duration_seconds"
        buckets = rate("splitplane_request_duration_seconds_bucket", self.demand_window, f"{_OWN}, le")
        link = f"{_OWN}, source, target"
        return {
            # Demand: what was let in, and what found no room.
            "arrivals": f"{rate(admitted, self.demand_window)} + {rate(rejected, self.demand_window)}",
            "sampled": f"max by ({_OWN}) (timestamp({admitted}))",
            "scv": f"max by ({_OWN}) (splitplane_arrival_scv)",
            "p95": f"histogram_quantile(0.95, {buckets})",
            "stages": f"{rate(f'{stage}_sum', self.window, ranges)} / {rate(f'{stage}_count', self.window, ranges)}",
            # Of several gateways the one that others leave most room to, as ``controller.gateway_reports`` has it.
            "bandwidth": f"max by ({link}) (splitplane_link_bandwidth_bytes_per_second)",
            "delay": f"min by ({link}) (splitplane_link_delay_seconds)",
            "recent": " or ".join(
                f"label_replace(max by ({link}) (quantile_over_time({share}, "
                f'splitplane_link_bandwidth_bytes_per_second[{RECENT_SECONDS}s])), "share", "{share}", "", "")'
                for share in RECENT_SHARES
            ),
            "prices": "max by (node) (node_total_hourly_cost)",
        }


class PrometheusMetrics:
    """:class:`Metrics` from a Prometheus server, over one HTTP session that lives as long as the operator."""

    def __init__(self, url: str, *, queries: Queries | None = None, timeout_seconds: float = 5.0) -> None:
        self.url = url
        self._queries = queries or Queries()
        # One quick try: the next planning tick is the retry, and a hold in between is the right answer.
        self._connection: Any = PrometheusConnect(
            url=url.rstrip("/"), session=requests.Session(), retry=Retry(total=0), timeout=timeout_seconds
        )

    async def read(self, at: float) -> MetricsSnapshot:
        return await asyncio.to_thread(self._read, at)

    def close(self) -> None:
        self._connection.close()

    def _read(self, at: float) -> MetricsSnapshot:
        answers: dict[str, list[Any]] = {}
        try:
            for name, text in self._queries.texts().items():
                answers[name] = self._connection.custom_query(text, params={"time": f"{at:.3f}"})
        except requests.RequestException as error:
            return MetricsSnapshot(time=at, failure=f"Prometheus at {self.url} cannot be asked: {_cause(error)}")
        except (PrometheusApiClientException, ValueError, KeyError) as error:
            return MetricsSnapshot(time=at, failure=f"Prometheus at {self.url} refused a query: {error}")
        return interpret(answers, at=at, window=self._queries.demand_window)


def interpret(answers: Mapping[str, list[Any]], *, at: float, window: float) -> MetricsSnapshot:
    """Turn the answers to :class:`Queries` (by the queries' names) into typed measurements."""
    sampled = {_own(labels): value for labels, value in _series(answers["sampled"])}
    arrivals = {_own(labels): value for labels, value in _series(answers["arrivals"])}
    scv = {_own(labels): value for labels, value in _series(answers["scv"])}
    p95 = {_own(labels): value for labels, value in _series(answers["p95"])}
    stages: dict[PipelineKey, dict[tuple[str, int, int], Measurement]] = {}
    for labels, value in _series(answers["stages"]):
        first, _, last = labels.get("range", "").partition("-")
        if first.isdecimal() and last.isdecimal() and not math.isnan(value):  # 0/0: no request in the window
            stages.setdefault(_own(labels), {})[labels.get("tier", ""), int(first), int(last)] = _finite(value)
    links = {name: _links(_series(answers[name])) for name in ("bandwidth", "delay")}
    pasts = _pasts(_series(answers["recent"]))
    pipelines = {}
    for key in sampled.keys() | arrivals.keys() | stages.keys() | links["bandwidth"].keys() | links["delay"].keys():
        rate = _rate(arrivals.get(key), sampled.get(key), at=at, window=window)
        pipelines[key] = PipelineMetrics(
            arrival_rate=rate,
            arrival_scv=_behind(rate, scv.get(key)),
            p95_seconds=_behind(rate, p95.get(key)),
            stage_seconds=stages.get(key, {}),
            bandwidth=links["bandwidth"].get(key, {}),
            delay=links["delay"].get(key, {}),
            recent=pasts.get(key, {}),
        )
    prices = {labels["node"]: _finite(value) for labels, value in _series(answers["prices"]) if labels.get("node")}
    return MetricsSnapshot(time=at, pipelines=pipelines, node_prices=prices)


def _series(answer: Iterable[Any]) -> Iterable[tuple[Mapping[str, str], float]]:
    for series in answer:
        yield series["metric"], float(series["value"][1])


def _own(labels: Mapping[str, str]) -> PipelineKey:
    return labels.get("namespace", ""), labels.get("pipeline", "")


def _finite(value: float) -> Measurement:
    return Value(value) if math.isfinite(value) else Error(f"not a finite number: {value}")


def _rate(rate: float | None, sampled: float | None, *, at: float, window: float) -> Measurement:
    """An arrival rate: stale when the newest sample fell out of the window, idle when the counter stood still."""
    if sampled is not None and math.isfinite(sampled) and at - sampled > max(window, _FRESH_SECONDS):
        return Stale(at - sampled)
    if rate is None:
        return Missing("no series" if sampled is None else "too few samples yet")
    if rate == 0.0:
        return Idle()
    return _finite(rate)


def _behind(rate: Measurement, value: float | None) -> Measurement:
    """A statistic of requests: without requests there is none, and 0/0 is no error then."""
    if isinstance(rate, Idle | Stale | Missing):
        return rate
    return Missing("too few samples yet") if value is None else _finite(value)


def _links(
    series: Iterable[tuple[Mapping[str, str], float]],
) -> dict[PipelineKey, dict[tuple[str, str], Measurement]]:
    found: dict[PipelineKey, dict[tuple[str, str], Measurement]] = {}
    for labels, value in series:
        ends = labels.get("source", ""), labels.get("target", "")
        found.setdefault(_own(labels), {})[ends] = _finite(value)
    return found


def _pasts(
    series: Iterable[tuple[Mapping[str, str], float]],
) -> dict[PipelineKey, dict[tuple[str, str], tuple[float, ...]]]:
    """Bandwidths at the shares of the recent past, rising; none of a link of which one is missing."""
    found: dict[PipelineKey, dict[tuple[str, str], list[float]]] = {}
    for labels, value in series:
        ends = labels.get("source", ""), labels.get("target", "")
        if math.isfinite(value):
            found.setdefault(_own(labels), {}).setdefault(ends, []).append(value)
    whole = len(RECENT_SHARES)
    return {
        key: {ends: tuple(sorted(values)) for ends, values in links.items() if len(values) == whole}
        for key, links in found.items()
    }


def _cause(error: BaseException) -> str:
    """The innermost reason: the outer layers repeat addresses and object names."""
    while True:
        reason = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(reason, BaseException):
            return str(error).rpartition(": ")[2] or type(error).__name__
        error = reason
