"""Inversion of photographs: a network of six convolutions, as He, Zhang and Lee (ACSAC 2019) attack it on CIFAR-10.

No package on the registries was found to ship CIFAR-10, so the images are patches of the photographs in scikit-image,
and the network is trained to tell from which photograph a patch is. Its layers are half as wide as theirs. What it
leaves in ``build/leak/photos.safetensors`` serves ``splitplane model leak`` for the text detector as well.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks.leak import OUT
from splitplane.model import scores
from splitplane.model.inversion import WIDTHS, draw

PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
SIDE, MOST_OF_ONE = 32, 300
"""Pixels of a patch, and how many of one photograph are used."""
CRAFT_SIDE, CRAFT_MOST_OF_ONE = 64, 60
"""The same of those for the text detector."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, as the text detector takes its images."""
CHANNELS = (32, 32, 64, 64, 64, 64)
ATTACKED = {"conv1": "SSIM about 0.99", "conv4": "about 0.69", "conv6": "about 0.31"}
"""Layers, with what He, Zhang and Lee report on CIFAR-10."""


class SixConvolutions(nn.Module):
    """Three pairs of convolutions with ReLU, each followed by pooling."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for number, width in enumerate(CHANNELS, start=1):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
            if number % 2 == 0:
                layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(before * (SIDE // 8) ** 2, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(image).flatten(1))  # type: ignore[no-any-return]

    def after(self, image: torch.Tensor, convolution: int) -> torch.Tensor:
        """What the ReLU of so many a convolution gives."""
        passed = 0
        for layer in self.layers:
            image = layer(image)
            passed += isinstance(layer, nn.ReLU)
            if passed == convolution:
                return image
        raise ValueError(f"there are {passed} convolutions")


def patches(side: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches in 0..1 that do not overlap, in random order, and of which photograph each is."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    found, labels = [], []
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(PHOTOGRAPHS):
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
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images) - held_out, (64,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        return model, float((model(images[-held_out:]).argmax(1) == labels[-held_out:]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for each attack")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--training", type=int, default=250, help="steps of training the network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    large, _ = patches(CRAFT_SIDE, CRAFT_MOST_OF_ONE)
    shape = (1, 3, 1, 1)
    save_file({"image": (large - torch.tensor(MEAN).view(shape)) / torch.tensor(DEVIATION).view(shape)},
              OUT / "photos.safetensors")  # fmt: skip
    images, labels = patches(SIDE, MOST_OF_ONE)
    held_out = len(images) // 5
    model, right = trained(images, labels, held_out, options.training)
    print(f"{len(images)} patches; {right:.1%} of those held out are told from which photograph they are", flush=True)
    given: dict[str, torch.Tensor] = {"input": images}
    with torch.no_grad():
        given |= {name: model.after(images, int(name[-1])) for name in ATTACKED}
    given["conv1 of others"] = given["conv1"][torch.randperm(len(images), generator=torch.Generator().manual_seed(1))]
    rows = []
    for name, value in given.items():
        drawn = draw(
            {"x": value}, images, held_out, width=WIDTHS["large"], seconds=options.seconds, steps=options.steps
        )
        ssim = float(scores.ssim(drawn.guesses, images[-held_out:]).mean())
        psnr = float(scores.psnr(drawn.guesses, images[-held_out:]).mean())
        correlation = scores.distance_correlation(images[:400], value[:400])
        rows.append({"after": name, "ssim": ssim, "psnr": psnr, "steps": drawn.steps, "correlation": correlation})
        print(
            f"{name:16} {list(value.shape[1:])}: SSIM {ssim:.3f}, PSNR {psnr:.1f} dB, {drawn.steps} steps, distance "
            f"correlation {correlation:.2f}; on CIFAR-10 by He, Zhang and Lee: {ATTACKED.get(name, '')}",
            flush=True,
        )
    clean = [row for row in rows if row["after"] in ATTACKED]
    rank = scores.rank_correlation([row["correlation"] for row in clean], [row["ssim"] for row in clean])  # type: ignore[misc]
    print(f"rank correlation of distance correlation with SSIM {rank}")
    (OUT / "leak-photos.json").write_text(json.dumps({"rows": rows, "rank": rank, "right": right}, indent=2))


if __name__ == "__main__":
    main()
