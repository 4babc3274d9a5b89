"""A perceptron of few wide layers, as recommenders end in: a sample reads 134 MB of weights for little work."""

import hashlib
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

WIDTH, LAYERS = 4096, 2


def build() -> nn.Module:
    layers = [part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers).eval()


def save(path: Path) -> str:
    """Write weights as they are initialised; returns their sha256."""
    save_file(build().state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
