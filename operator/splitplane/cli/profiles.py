"""How ``splitplane model profile`` shows what it measures: a progress bar, tables, a picture."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from splitplane.afresh import temporary_folder
from splitplane.cli.plots import check_picture, new_figure, save
from splitplane.domain.leaks import spread
from splitplane.domain.profiles import BASE_CODECS, ZSTD
from splitplane.domain.profiles_io import ProfileResult

if TYPE_CHECKING:
    from splitplane.model import ModelSource
    from splitplane.model.leak import LeakReport

MB, KB = 1e6, 1e3


class MeasureProgress:
    """A bar with what was found last; without a terminal, lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("exporting", total=1.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def measured(self, share: float, text: str) -> None:
        self._bar.update(self._task, completed=share, description=text)
        if not self._console.is_terminal:
            self.say(f"{share:.0%}: {text}")


@contextlib.contextmanager
def own_weights(source: "ModelSource") -> Iterator["ModelSource"]:
    """The source; one without weights gets a file of those that its factory makes, while this lasts."""
    if source.weights_uri is not None:
        yield source
        return
    from splitplane.model.whole import save_own_weights

    with temporary_folder("splitplane-profile-") as folder:
        path = folder / "own.safetensors"
        save_own_weights(source, path)
        yield replace(source, weights_uri=path.as_uri())


def profile_tables(result: ProfileResult) -> list[Table]:
    """Along the depth; over batch sizes and threads; by codec."""
    profile, device = result.profile, result.device
    whole = device.prefix_seconds[-1]
    batches = [timing for timing in device.timings if timing.threads == device.threads]
    depth = Table(
        "cut", "after", f"ms, {device.threads} threads", "%",
        *(f"ms, batch {timing.batch}" for timing in batches), "GFLOP", "weights, MB",
        *(f"{codec}, kB" for codec in BASE_CODECS),
        title=f"{result.model}: {profile.segments} segments, spread {device.time_cv:.1%}",
    )  # fmt: skip
    _right(depth, 2)
    for cut, seconds in zip(profile.cuts, device.prefix_seconds, strict=True):
        before = range(cut.index)
        depth.add_row(
            str(cut.index), cut.name, f"{seconds * 1e3:.2f}", f"{100 * seconds / whole:.0f}",
            *(f"{timing.prefix_seconds[cut.index] * 1e3:.1f}" for timing in batches),
            f"{sum(profile.work[segment].flops for segment in before) / 1e9:.2f}",
            f"{profile.held_bytes(0, cut.index) / MB:.1f}",
            *(f"{cut.wire_bytes[codec] / KB:.1f}" for codec in BASE_CODECS),
        )  # fmt: skip
    sizes = Table("batch", "threads", "ms", "ms a sample", "spread", title="The whole model")
    _right(sizes, 0)
    own = (1, device.threads, whole, device.time_cv)
    others = [(each.batch, each.threads, each.prefix_seconds[-1], each.time_cv) for each in device.timings]
    for batch, threads, seconds, cv in sorted([own, *others]):
        sizes.add_row(str(batch), str(threads), f"{seconds * 1e3:.1f}", f"{seconds * 1e3 / batch:.1f}", f"{cv:.1%}")
    codecs = Table("codec", "encode, ms/MB", "decode, ms/MB", "of fp32's bytes", title="Codecs, per MB of fp32")
    _right(codecs, 1)
    inner = profile.cuts[1:-1] or profile.cuts[-1:]
    for codec, times in device.codec_times.items():
        share = sum(cut.wire_bytes[codec] / cut.wire_bytes["fp32"] for cut in inner) / len(inner)
        codecs.add_row(
            codec, f"{times.encode_seconds_per_byte * 1e9:.2f}", f"{times.decode_seconds_per_byte * 1e9:.2f}",
            f"{share:.0%}",
        )  # fmt: skip
    return [depth, sizes, codecs]


def _right(table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"


def plotting(path: Path) -> "Callable[[ProfileResult, LeakReport | None], None]":
    """What draws a profile into a file.

    Raises ``typer.BadParameter``, before time is spent, where matplotlib is not installed or could not write the file.
    """
    check_picture(path)

    def draw(result: ProfileResult, leak: "LeakReport | None") -> None:
        profile, device = result.profile, result.device
        cuts = range(len(profile.cuts))
        panels = 2 if leak is None else 3
        figure = new_figure(width=max(7, len(cuts) / 4), height=3.5 * panels)
        above, below, *more = figure.subplots(panels, sharex=True)
        above.set_title(f"{result.model} on {device.threads} threads")
        above.plot(cuts, [seconds * 1e3 for seconds in device.prefix_seconds], marker="o", label="batch 1")
        for timing in device.timings:
            if timing.threads == device.threads:
                sample = [seconds * 1e3 / timing.batch for seconds in timing.prefix_seconds]
                above.plot(cuts, sample, linestyle="--", label=f"batch {timing.batch}, a sample")
        above.set_ylabel("ms up to the cut")
        above.legend()
        for codec in (*BASE_CODECS, f"int8{ZSTD}"):
            below.step(cuts, [cut.wire_bytes[codec] / KB for cut in profile.cuts], where="mid", label=codec)
        below.set_yscale("log")
        below.set_ylabel("kB across the cut, a sample")
        below.legend(ncols=3, fontsize=8)
        if leak is not None:
            _draw_leak(more[0], leak, len(cuts))
        figure.axes[-1].set_xticks(list(cuts), [cut.name for cut in profile.cuts], rotation=90, fontsize=7)
        save(figure, path)

    return draw


def _draw_leak(panel: Any, leak: "LeakReport", cuts: int) -> None:
    """What was got of the input at each attacked cut, what the others count as, and the two controls."""
    found = leak.worst()
    panel.step(range(cuts), [each["fp32"] for each in spread(found, cuts)], where="mid", label="counts as, fp32")
    panel.plot([cut for cut, _ in found], list(found.values()), "o", label="attacked")
    panel.axhline(leak.input_control, linestyle=":", color="grey", label="control: the input itself")
    panel.axhline(leak.shuffled_control, linestyle="--", color="grey", label="control: other inputs")
    panel.set_ylim(-0.02, 1.02)
    panel.set_ylabel(f"leak, at least\n({leak.score})")
    panel.legend(fontsize=8)
