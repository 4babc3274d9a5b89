"""Inversion of photographs: a network of six convolutions, as He, Zhang and Lee (ACSAC 2019) attack it on CIFAR-10.

No package on the registries was found to ship CIFAR-10, so the images are patches of the photographs in scikit-image,
and the network is trained to tell from which photograph a patch is. Its layers are half as wide as theirs.
"""

import argparse
import json
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks._inversion import OUT, attack, controls, package_data, train

PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
SIDE, MOST_OF_ONE = 32, 300
"""Pixels of a patch, and how many of one photograph are used."""
CHANNELS = (32, 32, 64, 64, 64, 64)
ATTACKED = {"layers.relu1": "SSIM about 0.99", "layers.relu4": "about 0.69", "layers.relu6": "about 0.31"}
"""Layers, with what He, Zhang and Lee report on CIFAR-10."""


class SixConvolutions(nn.Module):
    """Three pairs of convolutions with ReLU, each followed by pooling."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = 3
        for number, width in enumerate(CHANNELS, start=1):
            layers[f"conv{number}"], layers[f"relu{number}"] = nn.Conv2d(before, width, 3, padding=1), nn.ReLU()
            before = width
            if number % 2 == 0:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
        self.layers = nn.Sequential(layers)
        self.last = nn.Linear(before * (SIDE // 8) ** 2, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(image).flatten(1))  # type: ignore[no-any-return]


def patches(side: int, most: int, names: Sequence[str] = PHOTOGRAPHS) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches in 0..1 that do not overlap, in random order, and of which image each is."""
    folder = package_data("skimage")
    found, labels = [], []
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(names):
        pixels = torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1).float() / 255
        grid = pixels.unfold(1, side, side).unfold(2, side, side).flatten(1, 2).transpose(0, 1)
        chosen = grid[torch.randperm(len(grid), generator=generator)[:most]]
        found.append(chosen)
        labels.append(torch.full((len(chosen),), label))
    order = torch.randperm(sum(map(len, found)), generator=generator)
    return torch.cat(found)[order].contiguous(), torch.cat(labels)[order]


def trained(images: torch.Tensor, labels: torch.Tensor, held_out: int, steps: int) -> tuple[SixConvolutions, float]:
    """The network, and its share of right answers on the held-out patches."""
    torch.manual_seed(0)
    model = SixConvolutions(len(PHOTOGRAPHS))
    train(model, images[:-held_out], labels[:-held_out], steps=steps, rate=1e-3)
    with torch.no_grad():
        return model, float((model(images[-held_out:]).argmax(1) == labels[-held_out:]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--training", type=int, default=250, help="steps of training the network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    images, labels = patches(SIDE, MOST_OF_ONE)
    held_out = len(images) // 5
    model, right = trained(images, labels, held_out, options.training)
    print(f"{len(images)} patches; {right:.1%} of those held out are told from which photograph they are", flush=True)
    report, rows = attack(model, images, ATTACKED, steps=options.steps)
    (OUT / "leak-photos.json").write_text(json.dumps({**controls(report), "rows": rows, "right": right}, indent=2))


if __name__ == "__main__":
    main()
