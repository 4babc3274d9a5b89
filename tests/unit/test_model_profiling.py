"""How a model is measured, and how repeated timings become a profile."""

import random
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from splitplane.domain.codecs import encoded_bytes
from splitplane.domain.profiles import BASE_CODECS, CODECS, ZSTD, TensorSpec
from splitplane.domain.profiles_io import ProfileResult
from splitplane.model import ModelSource, export, load_partition
from splitplane.model.profile import thread_counts
from splitplane.model.samples import sample
from splitplane.model.timing import WARM_UP, levelled_medians, time_prefixes, variation
from splitplane.runtime.profiling import profile_model
from tests.support.model_zoo import SMALL


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ProfileResult:
    (model,) = (each for each in SMALL if each.name == "small_resnet50")
    source = model.source(tmp_path_factory.mktemp("weights"))
    told: list[float] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads that wait for each other take long on a machine that is busy
    found = profile_model(
        source, "here", say=lambda _: None, progress=lambda share, _: told.append(share), budget_seconds=4.0,
        batches=(1, 3),
    )  # fmt: skip
    torch.set_num_threads(before)
    assert told == sorted(told)
    assert all(0.0 < share <= 1.0 for share in told)
    return found


def test_prefixes_of_every_batch_size_grow_from_nothing(result: ProfileResult) -> None:
    device = result.device
    assert {(timing.batch, timing.threads) for timing in device.timings} == {(3, 1)}
    for seconds in (device.prefix_seconds, *(timing.prefix_seconds for timing in device.timings)):
        assert seconds[0] == 0.0 < seconds[-1]
        assert list(seconds) == sorted(seconds)
        assert len(seconds) == len(result.profile.cuts)


def test_compressed_sizes_are_measured_and_others_counted(result: ProfileResult) -> None:
    assert set(result.device.codec_times) == set(CODECS)
    for cut in result.profile.cuts[1:-1]:
        for codec in BASE_CODECS:
            assert cut.wire_bytes[codec] == sum(encoded_bytes(spec, codec) for spec in cut.tensors)
            assert 0 < cut.wire_bytes[codec + ZSTD] <= cut.wire_bytes[codec]
    after_relu = result.profile.cuts[1]
    assert after_relu.wire_bytes["fp32+zstd"] < 0.9 * after_relu.wire_bytes["fp32"]


def test_arithmetic_of_segments_adds_up_to_that_of_the_model(tmp_path: Path) -> None:
    (model,) = (each for each in SMALL if each.name == "small_vit_b")
    graph = export(model.source(tmp_path))
    assert graph.program is not None
    work, whole = graph.work(), graph.program.work(0, len(graph.segments))
    assert sum(each.flops for each in work) == pytest.approx(whole.flops, rel=0.01)
    # An encoder layer of width 32 and 64 on 17 tokens: four projections, two halves of attention, the MLP.
    tokens, width, hidden = 17, 32, 64
    layer = 2 * tokens * (4 * width * width + 2 * tokens * width + 2 * width * hidden)
    assert whole.flops == pytest.approx(3 * layer + 2 * 16 * 768 * 32 + 2 * 32 * 1000, rel=0.05)


class ControlFlow(nn.Module):
    """A branch with one layer or with two, and three rounds of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.layers
        x = torch.cond(x.sum() > 0, lambda x: second(torch.tanh(first(x))), lambda x: third(x), (x,))
        x, _ = scan(lambda x, added: (torch.tanh(fourth(x + added)), x.clone()), x, torch.stack([x, x, x]))
        return x


def test_control_flow_counts_as_its_larger_branch_and_as_all_its_rounds() -> None:
    module = ModuleType("models_under_test")
    module.build = ControlFlow  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    graph = export(ModelSource("test", "models_under_test:build", None, None, (TensorSpec("x", "FP32", (64,)),)))
    del sys.modules[module.__name__]
    assert graph.program is not None
    work = graph.program.work(0, len(graph.segments))
    layer = 2 * 64 * 64
    assert work.flops == pytest.approx((2 + 3) * layer, rel=0.05)
    assert work.moved_bytes == pytest.approx((2 + 3) * 4 * 64 * 64, rel=0.2)


@pytest.mark.parametrize(("most", "counts"), [(1, (1,)), (2, (1, 2)), (8, (1, 4, 8)), (64, (1, 32, 64))])
def test_few_thread_counts_are_timed_however_many_cores_there_are(most: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(most) == counts


def test_a_slow_round_does_not_move_the_medians() -> None:
    true = [1.0, 2.0, 4.0]
    levels = [1.0, 1.1, 3.0, 0.9, 1.0]
    times = [[seconds * level for level in levels] for seconds in true]
    assert levelled_medians(times) == pytest.approx(true)


def test_what_ends_one_run_late_at_one_cut_moves_no_prefix(tmp_path: Path) -> None:
    (model,) = (each for each in SMALL if each.name == "small_resnet50")
    partition = load_partition(model.source(tmp_path), 0, None)
    true = [0.001 * (segment + 1) for segment in range(partition.last)]
    late, now, calls = random.Random(1), 0.0, -WARM_UP * partition.last  # which mark cuts, but no start

    def clock() -> float:
        nonlocal now, calls
        place = calls % (partition.last + 1)
        now += true[place - 1] * late.choice([1.0, 1.0, 1.0, 9.0]) if place else 1.0
        calls += 1
        return now

    inputs = sample(partition.graph.inputs)
    timed = time_prefixes(partition, inputs, clock=clock, end=time.monotonic() + 60.0, bounds=(40, 40))
    assert timed.seconds == pytest.approx([sum(true[:cut]) for cut in range(partition.last + 1)], rel=0.02)


def test_variation_estimates_the_spread_whatever_outliers_do() -> None:
    generator = random.Random(4)
    series = [generator.gauss(1.0, 0.05) for _ in range(400)]
    assert variation(series) == pytest.approx(0.05, rel=0.2)
    assert variation([*series, *(50.0 for _ in range(20))]) == pytest.approx(0.05, rel=0.3)
    assert statistics.stdev([*series, *(50.0 for _ in range(20))]) > 1.0
