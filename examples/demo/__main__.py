"""Runs the demo from nothing to the report: see `--help`."""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console

from demo import report
from demo.embedded import Embedded
from demo.kube import Active, DemoError, Kube, active, wait_for
from demo.scenario import BASE_RATE, FAST_LINK, STEPS, Step
from demo.sites import CLAIM, EXAMPLES, PIPELINE, Site, python
from splitplane.local.errors import LocalError

MEASURED_REQUESTS = 50
"""Requests that a steady state is measured over at least: of fewer, one that met a hiccup of the machine is the p95."""

MOST_MEASUREMENTS = 3
"""How often a steady state is measured when new plans interrupt it."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)


class Demo:
    """One run of the demo on one cluster."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.log = self.out / "requests.jsonl"
        self.began = time.monotonic()
        self.marks: list[report.Mark] = []
        self.steps: list[tuple[float, report.StepReport]] = []
        """With the time of each one's event."""
        self.shown: list[str] = []
        self.site = self._site()
        self.kube: Kube

    def _site(self) -> Site:
        keep = self.options.keep
        if self.options.on == "kind":
            from demo.kind import OnKind  # only there is hack/kind-node on the path

            return OnKind(keep=keep, console=console, say=self.say)
        return Embedded(name=self.options.name, keep=keep, out=self.out, console=console, say=self.say)

    def say(self, text: str) -> None:
        console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/]  {text}")

    def install(self) -> Path:
        """Splitplane, and what the pipeline reads. Returns the file of frames and of the unsplit model's answers."""
        with console.status("Installing Splitplane from its chart"):
            self.site.install()
        self.say("Splitplane is installed (charts/splitplane)")
        with console.status("Saving the trained weights of CREPE on a volume"):
            code = EXAMPLES / "models" / "pitch_tracker.py"
            self.kube.run("create", "configmap", "pitch-tracker-code", f"--from-file=pitch_tracker.py={code}")
            weights = self.site.weights()
        self.say(f"Trained weights are on the volume {CLAIM}")
        data = self.out / "reference.npz"
        # Of the very file that the pods read.
        with console.status("Computing the unsplit model's answers, to compare with"):
            python("-m", "demo.reference", str(weights), str(data))
        return data

    def apply(self) -> Active:
        self.kube.run("apply", "--filename=-", stdin=self.site.pipeline())
        with console.status("Profiling the model on each tier, planning, starting partitions") as status:

            def ready() -> Active | None:
                now = active(self.kube, PIPELINE)
                status.update(f"Waiting until Ready: {now.conditions.get('Ready', 'not seen by the operator yet')}")
                return now if now.ready and now.summary else None

            first = wait_for(
                "Ready",
                ready,
                seconds=240 * self.site.patience,
                show=lambda: str(active(self.kube, PIPELINE).conditions),
            )
        self.say(f"{PIPELINE} is Ready: [bold]{first.text}[/]")
        return first

    @contextmanager
    def client(self, data: Path) -> Iterator[subprocess.Popen[str]]:
        """The constant-rate client, ended at the end by its own command."""
        self.log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "demo.client", "--url", self.site.gateway(), "--model", PIPELINE,
                   "--data", str(data), "--log", str(self.log)]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            if process.poll() is None and process.stdin:
                process.stdin.write("stop\n")
                process.stdin.close()
            try:
                process.wait(70)
            finally:
                process.kill()

    def set_rate(self, client: subprocess.Popen[str], rate: float) -> None:
        if client.poll() is not None or client.stdin is None:
            raise DemoError(f"the client ended with code {client.returncode}")
        client.stdin.write(f"rate {rate}\n")
        client.stdin.flush()

    def steady(self, name: str, seconds: float) -> list[report.Request]:
        """Requests sent in so many seconds of a steady state, all of them answered.

        The state is steady once what queued up during the change has been answered: of the last ten answers half came
        within 1.2 times the predicted p95, which nearly all are below then.
        """

        def drained() -> bool:
            last = sorted(report.read_log(self.log), key=lambda request: request.sent + request.seconds)[-10:]
            bound = 1.2 * active(self.kube, PIPELINE).predicted_p95 / 1e3
            return len(last) == 10 and median(request.seconds if request.ok else math.inf for request in last) <= bound

        try:
            wait_for("a steady state", drained, seconds=self.options.settle * self.site.patience)
        except DemoError as error:  # Measured all the same.
            self.shown.append(f"{name}: {error}")
        start = time.time()
        time.sleep(seconds)
        end = time.time()
        time.sleep(1.0)
        return report.between(report.read_log(self.log), start, end)

    def play(self, step: Step, client: subprocess.Popen[str], first: Active) -> None:
        before, began = active(self.kube, PIPELINE), time.time()
        self.marks.append(report.Mark(began, step.name, is_event=True))
        self.say(f"[bold]{step.name}[/]")
        step.change(self.site)
        self.set_rate(client, step.rate)
        with console.status("Waiting for the new plan") as status:

            def settled() -> Active | None:
                now = active(self.kube, PIPELINE)
                status.update(f"Serving {now.text}; {now.conditions.get('Progressing', '')}")
                wanted = now.generation > before.generation and step.settled(before, now, first)
                return now if wanted and now.changed_for(step.reasons, began - 1) else None

            after = wait_for(
                step.name,
                settled,
                seconds=step.within * self.site.patience,
                show=lambda: str(active(self.kube, PIPELINE).conditions),
            )
        served = time.time()
        self.marks.append(report.Mark(served, after.text, is_event=False))
        self.say(f"    {before.text} -> [bold]{after.text}[/] after {served - began:.1f} s: {after.why(began - 1)}")
        for change in after.changes:
            if change.at >= began - 1:
                self.say(f"    [dim]{change.message}[/]")
        self.record(step.name, before=before, began=began, seconds_to_plan=served - began, rate=step.rate)

    def record(self, name: str, *, before: Active, began: float, seconds_to_plan: float, rate: float) -> None:
        """Measures the steady state after an event: of one plan, so again if another came meanwhile.

        Failures are counted at the end: see ``finish``.
        """
        seconds = max(self.options.steady, MEASURED_REQUESTS / rate)
        with console.status("Measuring the steady state"):
            for _ in range(MOST_MEASUREMENTS):
                after = active(self.kube, PIPELINE)
                window = self.steady(name, seconds)
                if active(self.kube, PIPELINE).generation == after.generation:
                    break
        observed = report.p95_ms(window)
        goodput = sum(request.ok for request in window) / seconds
        p95 = f"p95 predicted {after.predicted_p95:.0f} ms, observed {observed:.0f} ms"
        self.say(f"    {p95}; {after.cost_per_hour:.2f}/h; {goodput:.1f} answers/s")
        if goodput < 0.95 * rate:
            self.shown.append(f"{name}: {goodput:.1f} answers/s where {rate:.1f}/s were sent")
        if not 0.75 * observed <= after.predicted_p95 <= 1.25 * observed:
            self.shown.append(f"{name}: predicted p95 {after.predicted_p95:.0f} ms, observed {observed:.0f} ms")
        pods = self.kube.pods(**{"splitplane.dev/pipeline": PIPELINE, "app.kubernetes.io/component": "stage"})
        step = report.StepReport(
            name=name, planBefore=before.text, planAfter=after.text,
            reason=after.why(began - 1 if self.steps else 0.0),
            predictedP95Ms=round(after.predicted_p95, 1), observedP95Ms=round(observed, 1),
            costPerHour=after.cost_per_hour, goodputPerSecond=round(goodput, 2),
            secondsToNewPlan=round(seconds_to_plan, 1), podUids=sorted(pod["metadata"]["uid"] for pod in pods),
        )  # fmt: skip
        self.steps.append((began, step))

    def finish(self) -> None:
        """The report, once the client has ended: every request that it sent belongs to a step and has its answer."""
        requests = report.read_log(self.log)
        if not self.steps:
            return
        limit = self.kube.get("ipipe", PIPELINE)["spec"]["objectives"]["latencyP95Milliseconds"]
        ends = [*(began for began, _ in self.steps[1:]), math.inf]
        steps = [
            step.counting(report.between(requests, began, end), limit_ms=limit)
            for (began, step), end in zip(self.steps, ends, strict=True)
        ]
        report.write_json(self.out / "report.json", steps)
        report.plot(self.out / "timeline.png", requests, self.marks, title="CREPE, split and re-planned by Splitplane")
        console.print(report.table(steps))
        console.print(f"{len(requests)} requests; a request is over the limit after {limit} ms, also during a change")
        console.print(f"Report: {self.out / 'report.json'}   Plot: {self.out / 'timeline.png'}")
        if lost := report.unanswered(requests):
            self.shown.append(f"{lost} requests that the client sent are not in {self.log}")
        for step in steps:
            if step.failed:
                self.shown.append(f"{step.name}: {step.failed} requests failed (see {self.log})")
            if not step.minCosine >= step.least_cosine:
                self.shown.append(f"{step.name}: an answer has cosine {step.minCosine:.6f} to the unsplit model's")

    def run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with self.site.up() as self.kube:
            self.say(f"Cluster is up: 2 edge nodes, 1 cloud node, {FAST_LINK}/s between them")
            data = self.install()
            self.apply()
            with ExitStack() as stack:
                stack.callback(self.finish)
                client = stack.enter_context(self.client(data))
                began = time.time()
                self.set_rate(client, BASE_RATE)
                with console.status("First traffic"):
                    time.sleep(self.options.warm)
                first = wait_for("a split plan", lambda: _split(self.kube), seconds=90)
                self.record("first plan", before=first, began=began, seconds_to_plan=0.0, rate=BASE_RATE)
                first = active(self.kube, PIPELINE)
                for step in STEPS:
                    if step.letter in self.options.steps:
                        self.play(step, client, first)
            self.shown += self.site.shown()


def _split(kube: Kube) -> Active | None:
    now = active(kube, PIPELINE)
    return now if len(now.cuts) > 1 else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up at the end")
    parser.add_argument(
        "--steps",
        default="abcde",
        help="which of the events a, b, c, d, e to play; each starts from what those before it left (default: all)",
    )
    parser.add_argument(
        "--on", choices=("embedded", "kind"), default="embedded", help="the cluster (default: embedded)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder of report.json and timeline.png")
    parser.add_argument("--name", default="demo", help="name of the embedded cluster")
    parser.add_argument("--warm", type=float, default=10.0, help="seconds of traffic before the first measurement")
    parser.add_argument("--settle", type=float, default=40.0, help="longest wait for a steady state after a new plan")
    parser.add_argument(
        "--steady", type=float, default=12.0, help="least seconds over which a steady state is measured"
    )
    demo = Demo(parser.parse_args())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the cluster is taken down
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        demo.run()
    except (DemoError, LocalError) as error:
        console.print(f"[red]The demo stopped:[/] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped; what was started has been ended.")
        return 130
    for line in demo.shown:
        console.print(f"[yellow]Not as it should be:[/] {line}")
    return 2 if demo.shown else 0


if __name__ == "__main__":
    sys.exit(main())
