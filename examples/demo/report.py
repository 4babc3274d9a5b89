"""What the demo shows at its end: the table, the plot, and `report.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the client's log."""

    number: int
    due: float
    sent: float
    seconds: float
    ok: bool
    cosine: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class StepReport:
    """One event and what came of it. Names are those of `report.json`."""

    name: str
    planBefore: str  # noqa: N815
    planAfter: str  # noqa: N815
    reason: str
    predictedP95Ms: float  # noqa: N815
    observedP95Ms: float  # noqa: N815
    costPerHour: float  # noqa: N815
    goodputPerSecond: float  # noqa: N815
    secondsToNewPlan: float  # noqa: N815
    podUids: list[str]  # noqa: N815
    requests: int = 0
    failed: int = 0
    overLimit: int = 0  # noqa: N815
    """Answered later than the pipeline's latency limit, the change itself included."""
    minCosine: float = 1.0  # noqa: N815
    """Lowest cosine of an answer to the unsplit model's."""

    @property
    def least_cosine(self) -> float:
        """What ``minCosine`` must reach: int8 on the wire rounds more than fp32 and fp16 do."""
        return 0.999 if "int8" in self.planBefore + self.planAfter else 0.9999

    def counting(self, requests: Sequence[Request], *, limit_ms: float) -> "StepReport":
        """The same with the counts of all requests that were sent between this event and the next."""
        return replace(
            self,
            requests=len(requests),
            failed=sum(not request.ok for request in requests),
            overLimit=sum(request.ok and request.seconds * 1e3 > limit_ms for request in requests),
            minCosine=min((r.cosine for r in requests if r.cosine is not None), default=float("nan")),
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment on the time axis of the plot: an event, or a new plan that serves."""

    at: float
    text: str
    is_event: bool


def read_log(path: Path) -> list[Request]:
    """Requests in the order in which they were sent; a last line that is still being written is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    requests = [
        Request(r["number"], r["due"], r["sent"], r["seconds"], r["ok"], r.get("cosine"), r.get("error"))
        for r in records
    ]
    return sorted(requests, key=lambda request: request.sent)


def unanswered(requests: Sequence[Request]) -> int:
    """How many of the requests that the client numbered have no line in its log."""
    return max((request.number + 1 for request in requests), default=0) - len(requests)


def between(requests: Sequence[Request], start: float, end: float) -> list[Request]:
    return [request for request in requests if start <= request.sent < end]


def p95_ms(requests: Sequence[Request]) -> float:
    """95th percentile of the latency of answered requests, in milliseconds; NaN when there are none."""
    seconds = [request.seconds for request in requests if request.ok]
    return float(np.percentile(seconds, 95) * 1e3) if seconds else float("nan")


def write_json(path: Path, steps: Sequence[StepReport]) -> None:
    summary = {
        "steps": [asdict(step) for step in steps],
        "requests": sum(step.requests for step in steps),
        "failed": sum(step.failed for step in steps),
        "minCosine": min(step.minCosine for step in steps),
    }
    path.write_text(json.dumps(summary, indent=2) + "\n")


def table(steps: Sequence[StepReport]) -> Table:
    result = Table(title="What happened, and what Splitplane did about it")
    for column in ("step", "plan before", "plan after", "why", "p95 predicted", "observed", "cost/h", "requests"):
        result.add_column(column, overflow="fold")
    for column in ("failed", "over limit", "goodput", "new plan after"):
        result.add_column(column, justify="right")
    for step in steps:
        result.add_row(
            step.name, step.planBefore, step.planAfter, step.reason, f"{step.predictedP95Ms:.0f} ms",
            f"{step.observedP95Ms:.0f} ms", f"{step.costPerHour:.2f}", str(step.requests), str(step.failed),
            str(step.overLimit), f"{step.goodputPerSecond:.1f}/s", f"{step.secondsToNewPlan:.1f} s",
        )  # fmt: skip
    return result


def plot(path: Path, requests: Sequence[Request], marks: Sequence[Mark], *, title: str) -> None:
    """Latency of every request over time, goodput below, with events and new plans marked."""
    if not requests:
        return
    start = requests[0].sent
    times = np.array([request.sent - start for request in requests])
    latency = np.array([request.seconds * 1e3 for request in requests])
    ok = np.array([request.ok for request in requests])
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(13, 7), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    above.scatter(times[ok], latency[ok], s=7, color="tab:blue", label="answered")
    above.scatter(times[~ok], latency[~ok], s=22, color="tab:red", marker="x", label="failed")
    above.set_yscale("log")
    above.set_ylabel("latency (ms)")
    above.set_title(title)
    above.legend(loc="upper left")
    edges = np.arange(0.0, times[-1] + 2.0, 2.0)
    counts, _ = np.histogram(times[ok] + latency[ok] / 1e3, edges)
    below.step(edges[:-1], counts / 2.0, where="post", color="tab:green")
    below.set_ylabel("goodput (1/s)")
    below.set_xlabel("seconds")
    for mark in marks:
        color, style = ("black", "-") if mark.is_event else ("tab:orange", "--")
        for axis in (above, below):
            axis.axvline(mark.at - start, color=color, linestyle=style, linewidth=1)
        above.text(
            mark.at - start, 0.98 if mark.is_event else 0.62, " " + mark.text, color=color, rotation=90, va="top",
            fontsize=8, transform=above.get_xaxis_transform(),
        )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)
