"""What long commands show while they work: a line per program that is built, a line for what the cluster waits for."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from splitplane.local import cluster
from splitplane.local.binaries import Building


class BuildProgress(cluster.Progress):
    """A line with the elapsed time per program; without a terminal, a line when it begins and when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._lines = RichProgress(*columns, console=console, disable=not console.is_terminal)
        self._builds: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> Self:
        self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_builds()
        self._lines.stop()

    def building(self, build: Building) -> None:
        self._finish_builds()
        text = f"building {build.tool} from source, once (about {build.minutes:g} min on two cores)"
        self._builds[build.tool] = (self._lines.add_task(text, total=1), time.monotonic())
        self._say(text)

    def done(self, tool: str, path: Path) -> None:
        self._finish_builds()
        self._console.print(f"{tool}: {path}", highlight=False, soft_wrap=True)

    def _finish_builds(self) -> None:
        for tool, (line, started) in self._builds.items():
            self._lines.update(line, completed=1, description=f"{tool} built")
            self._say(f"{tool} built in {time.monotonic() - started:.0f} s")
        self._builds.clear()

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True)


class UpProgress(BuildProgress):
    """Builds, then what the starting cluster is waiting for."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._line: TaskID | None = None

    def status(self, status: dict[str, Any]) -> None:
        self._finish_builds()
        components = status.get("components", {})
        waiting = [name for name, part in components.items() if not part["ready"]]
        text = status.get("message") or (f"waiting for {', '.join(waiting)}" if waiting else "starting")
        if self._line is None:
            self._line = self._lines.add_task(text, total=1)
        ready = status.get("phase") == "ready"
        self._lines.update(self._line, description="ready" if ready else text, completed=1 if ready else 0)
