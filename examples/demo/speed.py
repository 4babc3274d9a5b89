"""How long the whole pitch tracker takes on one thread of this machine: the demo's device speeds start from it."""

import statistics
import time

import torch

from models.pitch_tracker import build


def measure(*, repeats: int = 15) -> float:
    """Median seconds of one frame, of the core's time: what other processes take of it is not the model's."""
    torch.set_num_threads(1)
    model = build().eval()
    frame = torch.randn(1, 1024)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.thread_time()
            model(frame)
            seconds.append(time.thread_time() - began)
    return statistics.median(seconds[3:])


if __name__ == "__main__":
    print(measure())  # noqa: T201 - the answer of this process
