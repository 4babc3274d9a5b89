"""Images of one soft blob each, and a small classifier of where it is: enough to lose accuracy and to leak."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource

SIDE = 12
INPUTS = (TensorSpec("image", "FP32", (1, SIDE, SIDE)),)
WITH_WORDS = (*INPUTS, TensorSpec("words", "INT64", (6,)))


class Classifier(nn.Module):
    """Narrows quickly: two numbers cross the last cut but one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.narrow, self.last = nn.Linear(2 * (SIDE // 4) ** 2, 2), nn.Linear(2, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = nn.functional.max_pool2d(torch.relu(self.first(image)), 2)
        image = nn.functional.max_pool2d(torch.relu(self.second(image)), 2)
        return self.last(torch.tanh(self.narrow(image.flatten(1))))


class WithWords(nn.Module):
    """Takes words as well, which wait until the image is narrowed to two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.words, self.last = nn.Linear(SIDE**2, 2), nn.Embedding(9, 2), nn.Linear(2, 4)

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        image = torch.tanh(self.narrow(image.flatten(1)))
        return self.last(torch.relu(image + self.words(words).mean(1)))


def blobs(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in 0..1, and in which quarter each blob is."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.rand(samples, 2, generator=generator) * (SIDE - 4) + 2
    places = torch.arange(SIDE).float()
    lines = torch.exp(-((places[None, None] - centres[:, :, None]) ** 2) / 4)
    quarters = (centres > SIDE / 2).long()
    return (lines[:, 0, :, None] * lines[:, 1, None, :])[:, None], quarters[:, 0] * 2 + quarters[:, 1]


def write(folder: Path, samples: int) -> tuple[ModelSource, Path]:
    """The classifier, trained for a moment, and a file of calibration inputs with labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, (images, labels) = Classifier(), blobs(samples)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    weights, calibration = folder / "weights.safetensors", folder / "calibration.safetensors"
    save_file(model.state_dict(), weights)
    save_file({"image": images, "labels": labels}, calibration)
    return ModelSource("blobs", "tests.support.blobs:Classifier", weights.as_uri(), None, INPUTS), calibration
