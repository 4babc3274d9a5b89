"""What the benchmarks of the leak share: a model whose layers are attacked as cuts are, by what the operator runs."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitplane.model.calibration import Calibration
from splitplane.model.leak import LeakReport, measure_leak
from splitplane.model.profile import Codec

OUT = Path("build/leak")
UNHURRIED = 24 * 3600.0
"""Seconds for all attacks: the steps are what bounds them, so that figures do not depend on how busy a machine is."""
RAW = Codec(encode=dict, decode=dict, size=len)


def package_data(package: str) -> Path:
    """The folder ``data`` of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data"


def train(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, steps: int, rate: float
) -> None:  # fmt: skip
    """Train a classifier with Adam on batches of 64."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        loss = nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 200 == 0:
            print(f"training: step {step}, loss {loss:.3f}", flush=True)


class Layers:
    """Stands where a partition does: what crosses "cut" i is what the i-th of the named modules gives.

    Published figures are of layers at which nobody would cut, for a pooling after them leaves fewer bytes.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._modules = [dict(model.named_modules())[name] for name in names]

    def run(self, first: int, last: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if first != 0:
            raise ValueError("layers are run from the input only")
        found: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            found.append(output)

        hook = self._modules[last - 1].register_forward_hook(keep)
        try:
            with torch.inference_mode():
                self._model(*tensors.values())
        finally:
            hook.remove()
        return {"x": found[0]}


def attack(
    model: nn.Module, images: torch.Tensor, layers: Mapping[str, str], *, steps: int,
    codecs: Mapping[str, Codec] | None = None,
) -> tuple[LeakReport, list[dict[str, Any]]]:  # fmt: skip
    """Attack what layers give, by decoders that are trained for ``steps``.

    ``layers`` maps the names of modules to what was published of them. Prints a line for each, and gives the same as
    rows.
    """
    codecs = codecs or {"fp32": RAW}
    report = measure_leak(
        Layers(model, list(layers)), Calibration({"image": images}, None), codecs, range(1, len(layers) + 1),
        budget_seconds=UNHURRIED, steps=steps, threads=1, progress=print,
    )  # fmt: skip
    return report, show(report, dict(enumerate(layers, start=1)), layers)


def show(
    report: LeakReport, names: Mapping[int, str], published: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Print a line for each attack, and give the same as rows. ``names`` are those of the cuts."""
    rows = []
    for each in report.attacks:
        name, correlation = names[each.cut], report.correlations[each.cut]
        rows.append(
            {
                "after": name, "codec": each.codec, "decoder": each.decoder, "ssim": each.score, "skill": each.skill,
                "psnr": each.psnr, "above": each.above, "steps": each.steps, "correlation": correlation,
            }
        )  # fmt: skip
        print(
            f"{name:8} {each.codec:10} {each.decoder:5}: SSIM {each.score:.3f}, skill {each.skill:.3f}, "
            f"PSNR {each.psnr or 0:.1f} dB, {each.steps} steps, distance correlation {correlation:.2f}"
            + (f"; published: {published[name]}" if published else ""),
            flush=True,
        )
    print(
        f"controls: input {report.input_control:.3f}, shuffled {report.shuffled_control:.3f}, which is a skill of "
        f"{report.shuffled_skill:.3f}; {report.samples} images; "
        f"rank correlation {report.rank_correlation}; {report.weakness or 'strong enough for a limit'}",
        flush=True,
    )
    return rows


def controls(report: LeakReport) -> dict[str, Any]:
    """What the attacks are worth."""
    return {
        "samples": report.samples, "input": report.input_control, "shuffled": report.shuffled_control,
        "shuffledSkill": report.shuffled_skill, "rank": report.rank_correlation,
    }  # fmt: skip
