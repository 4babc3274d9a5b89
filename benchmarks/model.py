"""What Splitplane makes of models: time to export and cut, memory of partitions, speed of codecs, truth of profiles.

Models have their true size and random weights, but for the trained MiniLM. All on one thread.

    make bench-model     # writes build/bench/bench-model.json (about five minutes)
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks._report import Row, row, write
from benchmarks.model_memory import memory
from benchmarks.model_ranges import ranges
from splitplane.domain.profiles import BASE_CODECS, ZSTD
from splitplane.model import libraries
from splitplane.model.cutting import find_places
from splitplane.model.source import ModelSource
from splitplane.model.tracing import trace
from splitplane.runtime import codecs
from tests.support.model_zoo import FULL, TRAINED, Model

MODELS = {model.name: model for model in (*FULL, *TRAINED)}
EXPORTED = ("resnet50", "vit_b", "swin_tiny", "gpt2", "minilm")
IN_PART = ("vit_b", "gpt2")
RANGED = {"resnet50": 13, "mobilenet_v2": 12, "minilm": 12, "vit_b": 13}
"""How many random ranges of each model are timed."""
CUT_LIMIT_SECONDS = 10.0
INT8_LIMIT_MILLISECONDS = 1.5
MEGABYTE_SHAPE = (1, 64, 64, 64)
"""1 MB of fp32, as a convolution gives it."""
REPEATS = 101

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def main() -> list[Row]:
    libraries.use_threads(1)
    rows = [each for name in EXPORTED for each in exporting(MODELS[name])]
    rows += codec_speed()
    with tempfile.TemporaryDirectory(prefix="splitplane-bench-") as folder:
        sources = {name: MODELS[name].source(Path(folder)) for name in {*IN_PART, *RANGED}}
        rows += memory({name: sources[name] for name in IN_PART})
        rows += ranges({sources[name]: count for name, count in RANGED.items()})
    return rows


def exporting(model: Model) -> list[Row]:
    """Seconds to build and trace a model without its weights, and to find its cuts."""
    started = time.perf_counter()
    traced = trace(ModelSource(model.name, model.factory, None, None, model.inputs))
    exported = time.perf_counter()
    places = find_places(traced)
    found = time.perf_counter() - exported
    nodes = len(traced.graph.nodes)
    return [
        row(f"model: export of {model.name}, {nodes} nodes", exported - started, "s"),
        row(f"model: {len(places)} cuts of {model.name}", found, "s", CUT_LIMIT_SECONDS),
    ]


def codec_speed() -> list[Row]:
    """Milliseconds to encode and decode 1 MB, against what one would write in plain numpy or torch."""
    value = torch.randn(MEGABYTE_SHAPE, generator=torch.Generator().manual_seed(0)).relu()
    rows = []
    for codec in (each for base in BASE_CODECS for each in (base, base + ZSTD)):
        own = _milliseconds(lambda codec=codec: codecs.decode(codecs.encode({"x": value}, codec)))  # type: ignore[misc]
        plain = PLAIN.get(codec)
        baseline = None if plain is None else _milliseconds(lambda plain=plain: plain(value))  # type: ignore[misc]
        rows.append(row(f"model: {codec}, encode and decode 1 MB", own, "ms", baseline))
        if codec == "int8":
            rows.append(row("model: int8, the same against its limit", own, "ms", INT8_LIMIT_MILLISECONDS))
    return rows


def _fp32(value: torch.Tensor) -> object:
    return torch.frombuffer(bytearray(value.numpy().tobytes()), dtype=torch.float32).reshape(value.shape)


def _halved(dtype: torch.dtype) -> Callable[[torch.Tensor], object]:
    def through(value: torch.Tensor) -> object:
        sent = bytearray(value.to(dtype).view(torch.uint8).numpy().tobytes())
        return torch.frombuffer(sent, dtype=dtype).to(torch.float32).reshape(value.shape)

    return through


def _affine(value: torch.Tensor, steps: int) -> tuple[Array, Array, Array]:
    array = value.numpy()
    low, high = array.min(axis=(0, 2, 3), keepdims=True), array.max(axis=(0, 2, 3), keepdims=True)
    scale = np.where(high > low, (high - low) / steps, 1.0).astype(np.float32)
    return np.round((array - low) / scale), scale, low


def _int8(value: torch.Tensor) -> object:
    codes, scale, low = _affine(value, 255)
    sent = codes.astype(np.uint8).tobytes()
    return np.frombuffer(sent, np.uint8).reshape(value.shape) * scale + low


def _int4(value: torch.Tensor) -> object:
    codes, scale, low = _affine(value, 15)
    flat = codes.astype(np.uint8).reshape(-1)
    sent = (flat[0::2] | flat[1::2] << 4).tobytes()
    packed = np.frombuffer(sent, np.uint8)
    unpacked = np.empty(2 * len(packed), np.uint8)
    unpacked[0::2], unpacked[1::2] = packed & 15, packed >> 4
    return unpacked.reshape(value.shape) * scale + low


PLAIN: Mapping[str, Callable[[torch.Tensor], object]] = {
    "fp32": _fp32, "fp16": _halved(torch.float16), "bf16": _halved(torch.bfloat16), "int8": _int8, "int4": _int4,
}  # fmt: skip


def _milliseconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000.0 * statistics.median(times)


if __name__ == "__main__":
    write("bench-model", main())
