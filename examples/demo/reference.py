"""The audio that the demo's client sends, and the answers of the unsplit model to it.

Runs in a process of its own, so that the demo and its client stay free of torch.
"""

import sys

import numpy as np
import torch
from safetensors.torch import load_file

from models.audio import recorded
from models.pitch_tracker import build


def main(weights: str, out: str) -> None:
    """Writes ``frames`` [n, 1024] and ``expected`` [n, 360], both fp32, to the npz file ``out``."""
    torch.set_num_threads(1)
    model = build()
    model.load_state_dict(load_file(weights))
    model.eval()
    audio = recorded(64)
    with torch.inference_mode():
        expected = torch.cat([model(torch.from_numpy(audio[i : i + 1])) for i in range(len(audio))]).numpy()
    np.savez(out, frames=audio, expected=expected)


if __name__ == "__main__":
    main(*sys.argv[1:])
