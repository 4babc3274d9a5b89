"""What crosses is attacked whichever of its dimensions are channels, and whatever stands beside its patches."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from splitplane.model.targets import Drawing, Tokens
from tests.support import blobs

UNHURRIED = 3600.0
Arranged = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convolved(values: torch.Tensor, layer: nn.Conv1d | nn.Conv2d) -> torch.Tensor:
    with torch.no_grad():
        return functional.gelu(layer(values))


def with_registers(patches: torch.Tensor) -> torch.Tensor:
    """Five tokens before them, that are the same in all samples."""
    return torch.cat([torch.randn(5, patches.shape[2]).expand(len(patches), -1, -1), patches], 1)


def score(target: Drawing | Tokens, crossing: torch.Tensor, steps: int = 1) -> tuple[float, bool]:
    got = target.attack({"x": crossing}, 60, width=8, seconds=UNHURRIED, steps=steps)
    return float(got.scores.float().mean()), got.sure


@pytest.mark.parametrize(
    "arranged",
    [
        lambda grid: grid,
        lambda grid: grid.permute(0, 2, 3, 1),
        lambda grid: grid.flatten(2),
        lambda grid: grid.flatten(2).transpose(1, 2),
        lambda grid: with_registers(grid.flatten(2).transpose(1, 2)),
        lambda grid: grid.flatten(2).unflatten(1, (4, 5)).transpose(2, 3),
    ],
    ids=["nchw", "nhwc", "nct", "ntc", "registers", "heads"],
)
def test_an_image_is_drawn_whatever_the_arrangement(arranged: Arranged) -> None:
    torch.manual_seed(0)
    images, _ = blobs.blobs(300)
    grid = convolved(images, nn.Conv2d(1, 20, 3, padding=1))
    told, sure = score(Drawing(images), arranged(grid).contiguous())
    assert told > 0.9  # of all but the first and the fourth it was less than 0.5
    assert sure == (arranged(grid).shape[1:] != (149, 20))


@pytest.mark.parametrize("arranged", [lambda grid: grid, lambda grid: grid.transpose(1, 2)], ids=["nct", "ntc"])
def test_a_signal_is_drawn_whatever_the_arrangement(arranged: Arranged) -> None:
    torch.manual_seed(0)
    phases = torch.rand(300, 3, 1) * 6.28
    signals = torch.sin(torch.linspace(0, 20, 80) + phases) + torch.rand(300, 3, 1)
    told, _ = score(Drawing(signals), arranged(convolved(signals, nn.Conv1d(3, 24, 3, padding=1))))
    assert told > 0.9


@pytest.mark.parametrize(
    "arranged",
    [
        lambda found: found.transpose(1, 2),
        lambda found: found.unflatten(2, (4, 64)).transpose(1, 2),
        lambda found: torch.cat([torch.zeros(300, 1, 256), found], 1),
        lambda found: found.flatten(1),
    ],
    ids=["nct", "heads", "class", "flattened"],
)
def test_tokens_are_guessed_whatever_the_arrangement_and_the_size(arranged: Arranged) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 30, (300, 40))
    told, _ = score(Tokens(ids), arranged(torch.randn(30, 256)[ids]), steps=60)
    assert told > 0.9  # tensors of more than 8,192 numbers were left out


def test_what_may_have_been_read_wrongly_is_told() -> None:
    torch.manual_seed(0)
    images, _ = blobs.blobs(300)
    ids = torch.randint(0, 30, (300, 12))
    assert not score(Drawing(images), torch.randn(300, 83, 103))[1]  # neither is a grid of patches
    assert not score(Tokens(ids), torch.randn(300, 101, 100))[1]
    assert score(Tokens(ids), torch.randn(300, 64))[1]
    assert score(Drawing(images), torch.randn(300, 64))[1]
