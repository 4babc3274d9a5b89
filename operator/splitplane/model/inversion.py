"""An attack: a network that is trained to draw the input from what crosses a cut, as He, Zhang and Lee (2019) did.

The attacker is given the model's answers to inputs of its own (black box), which are the calibration inputs here.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch
from torch import nn
from torch.nn import functional

from splitplane.model.arrangements import (
    MOST_ANYWHERE,
    NUMBERS,
    Reading,
    at_each,
    at_places,
    best_of,
    coded,
    readings,
)
from splitplane.model.scores import recovered
from splitplane.model.solved import discriminate, unfold

WIDTHS = {"small": 8, "large": 24}
"""Channels of the two decoders."""
STEPS, BATCH, LEARNING_RATE = 1000, 32, 3e-3
_BOTTLENECK = 256
_BYTES_OF_WEIGHT = 16
"""Of a weight that is trained with Adam: itself, its gradient, two moments."""
_COPIES_IN_STEP = 3
"""Of what a step keeps for its gradients: that, the gradients, and how what is given was made."""
_HIDDEN = 16
"""Hidden units of a guesser of tokens, for each of its width."""
_SLOPE = 0.02
"""Of what is drawn outside of 0..1, in training."""
_REACHES = (5, 3, 1)
"""Places along each dimension of which the direct part draws one: as many as can be solved for."""
_LINEAR_CHANNELS = 128
"""Up to so many channels are also drawn from directly, by one convolution, which a shallow cut mostly needs."""
_SOLVED_NUMBERS = 1200
"""Up to so many weights of that for each channel drawn are solved for, in seconds: more would take too long."""
_SOLVED_SAMPLES, _ROWS_FOR_EACH, _RIDGE = 128, 10, 1e-6
"""Samples and, for each unknown, places by which that is solved."""
_NUMBERS_TOGETHER = 1 << 21
"""So many numbers of several samples, or one sample, are looked at together where nothing is trained."""
_JUDGED_BY, _MOST_JUDGED_BY = 8, 64
"""One in so many of the attacker's own samples, 64 at most, is not trained on: by these it keeps the better decoder."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a trained decoder draws of the held-out samples, and the steps it was trained for.

    ``sure`` is whether each tensor was read in a way that is surely one that it may be meant in.
    """

    guesses: torch.Tensor
    steps: int
    sure: bool = True


def _set_aside(known: int) -> torch.Tensor:
    """Of the attacker's own samples those that nothing is trained on, by number."""
    return torch.arange(known - min(_MOST_JUDGED_BY, -(-known // _JUDGED_BY)), known)


def draw(
    tensors: Mapping[str, torch.Tensor], targets: torch.Tensor, held_out: int, *, width: int, seconds: float,
    steps: int = STEPS, memory_bytes: float = math.inf, seed: int = 0,
) -> Drawn:  # fmt: skip
    """Train on all but the last ``held_out`` samples, draw those. ``targets`` are ``[n, channels, *places]`` in 0..1.

    Some of the known ones are set aside: by these the decoder is judged before and after it was trained, so that one
    which has learnt its samples by heart isn't kept, and by these it is found which dimensions of a tensor are places.
    Training ends after ``steps`` or ``seconds``, whichever comes
    first. A step takes about ``memory_bytes`` at most.
    """
    known, places = len(targets) - held_out, tuple(targets.shape[2:])
    judging = _set_aside(known)
    trained = int(judging[0])
    most = max(1, int(min(memory_bytes / (2 * _BYTES_OF_WEIGHT * _BOTTLENECK), 2**31)))
    given: list[_Standardised] = []
    sure = True
    for value in tensors.values():
        may = readings(value.shape[1:], len(places))
        sure = sure and may.sure
        grids = best_of(may.grids, value, targets, judging)
        given += [_Standardised(_coarser(value, each, places, most), known) for each in grids[:1]]
        # Further readings are made when they are asked for: what crosses is held no more often than without them.
        given += [
            _Standardised(value, known, partial(_made_coarser, reading=each, places=places)) for each in grids[1:]
        ]
        if grids and grids[0].leaves(value):
            given.append(_Standardised(_coarser(grids[0].beside(value), NUMBERS, places, most), known))
        if may.numbers:
            given.append(_Standardised(_coarser(value, NUMBERS, places, most), known))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        decoder = _Decoder([tuple(each[:1].shape[1:]) for each in given], targets[:trained].mean(0), width)
    began = time.monotonic()
    decoder.solve(lambda index: [each[index : index + 1] for each in given], targets[:trained])
    unfolded = (
        unfold(each.__getitem__, targets, judging, held_out, seconds=seconds / len(given), memory_bytes=memory_bytes)
        for index, each in enumerate(given)
        if each[:1].ndim > 2 and (index not in decoder.direct_from or each[:1].shape[2:] != places)
    )
    solved = min(filter(None, unfolded), key=itemgetter(1), default=None)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        drawn = decoder([each[chosen] for each in given])
        # Clamped as when it is scored, or plain areas would never be quite plain; not quite flat, or nothing is learnt.
        clamped = drawn.clamp(0, 1) + _SLOPE * (drawn - drawn.clamp(0, 1))
        return functional.mse_loss(clamped, targets[:known][chosen])

    together = _together(loss, memory_bytes)
    at_first = {name: value.clone() for name, value in decoder.state_dict().items()}
    first = _mean(loss, judging, together)
    left = seconds - (time.monotonic() - began)
    done = _train(decoder, loss, trained, together, seconds=max(0.0, left), steps=steps, seed=seed)
    if not _mean(loss, judging, together) <= first:
        decoder.load_state_dict(at_first)
    with torch.inference_mode():
        asked = torch.split(torch.arange(known, len(targets)), together)
        parts = [decoder([each[part] for each in given]) for part in asked]
        judged = [decoder([each[part] for each in given]).clamp(0, 1) for part in torch.split(judging, together)]
    error = float(functional.mse_loss(torch.cat(judged), targets[judging]))
    if solved is not None and solved[1] < error:
        return Drawn(solved[0], done, sure)
    return Drawn(torch.cat(parts).clamp(0, 1), done, sure)


def guess_tokens(
    tensors: Mapping[str, torch.Tensor], targets: torch.Tensor, held_out: int, *, common: int, width: int,
    seconds: float, steps: int = STEPS, memory_bytes: float = math.inf, seed: int = 0,
) -> Drawn:  # fmt: skip
    """As :func:`draw`, for classes ``[n, places]``: the guesses are those of the held-out samples.

    What is no quantity, but an id, is looked up. A linear discriminant is solved for beside the decoder that is
    trained, and the better one kept, by all classes but the ``common`` one.
    """
    known, classes, places = len(targets) - held_out, int(targets.max()) + 1, targets.shape[1]
    judging = _set_aside(known)
    trained, began = int(judging[0]), time.monotonic()
    parts: list[_Standardised] = []
    sure = True
    for value in tensors.values():
        found, certain = at_places(value, places, MOST_ANYWHERE)
        sure = sure and certain
        flattened = not found and value[0].numel() > places and value[0].numel() % places == 0
        if not found and not (flattened and value[0].numel() > MOST_ANYWHERE):
            found = [NUMBERS]
        forms = [(value, found)]
        if flattened:  # maybe
            forms.append((value.reshape(len(value), places, -1), [Reading((1,))]))
        for each, ways in forms:
            parts += [_Standardised(each, known, partial(at_each, reading=way, places=places)) for way in ways]
            ranks, codings = coded(each, ways, places)
            parts += [_Standardised(ranks, known, coding) for coding in codings]

    def given(chosen: torch.Tensor) -> torch.Tensor:
        """``[chosen, places, numbers]``: the place itself, what belongs to it, what belongs to none."""
        found = [part[chosen].movedim(1, 2) for part in parts]
        return torch.cat([torch.eye(places).expand(len(targets[chosen]), -1, -1), *found], 2)

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        hidden = _HIDDEN * width
        decoder = nn.Sequential(
            nn.Linear(given(torch.zeros(1, dtype=torch.long)).shape[2], hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(decoder(given(chosen)).flatten(0, 1), targets[chosen].flatten())

    solved = discriminate(given, targets, judging, held_out, common=common, seconds=seconds, memory_bytes=memory_bytes)
    together = _together(loss, memory_bytes)
    left = max(0.0, seconds - (time.monotonic() - began))
    done = _train(decoder, loss, trained, together, seconds=left, steps=steps, seed=seed)
    with torch.inference_mode():
        asked = torch.split(torch.arange(trained, len(targets)), together)
        guesses = torch.cat([decoder(given(part)).argmax(2) for part in asked])
    right = float(recovered(guesses[: len(judging)], targets[judging], common).mean())
    if solved is not None and solved[1] > right:
        return Drawn(solved[0], done, sure)
    return Drawn(guesses[-held_out:], done, sure)


class _Standardised:
    """Samples in the form that a decoder takes, made when they are asked for: all at once may be more than fits.

    Each channel has mean 0 and deviation 1 over the ``known`` samples, the first ones; what is no number is 0.
    """

    def __init__(
        self, value: torch.Tensor, known: int, form: Callable[[torch.Tensor], torch.Tensor] = lambda part: part
    ) -> None:
        self._value, self._form = value, form
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for chosen in torch.split(torch.arange(known), _at_once(self._formed(slice(1)))):
            part = self._formed(chosen).double()
            over = [0, *range(2, part.ndim)]
            count += part.numel() // part.shape[1]
            total, squares = total + part.sum(over, keepdim=True), squares + part.pow(2).sum(over, keepdim=True)
        self._mean = total / count
        self._deviation = (squares / count - self._mean.pow(2)).clamp_min(0).sqrt().clamp_min(1e-6).float()
        self._mean = self._mean.float()

    def __getitem__(self, chosen: torch.Tensor | slice) -> torch.Tensor:
        return (self._formed(chosen) - self._mean) / self._deviation

    def _formed(self, chosen: torch.Tensor | slice) -> torch.Tensor:
        return self._form(self._value[chosen].float().nan_to_num(0.0, 0.0, 0.0))


def _coarser(value: torch.Tensor, reading: Reading, places: tuple[int, ...], most: int) -> torch.Tensor:
    """Samples as a grid no finer than the target, else averaged, as the target was, or as numbers, ``most`` at most.

    A decoder that begins with finer grids would take many times as long and as much memory, for the same target.
    """
    one = reading(value[:1])
    made = _made_coarser(value[:1].float(), reading=reading, places=places, most=most)
    if made.shape == one.shape:
        return reading(value)
    averaged = torch.empty(len(value), *made.shape[1:])
    for chosen in torch.split(torch.arange(len(value)), _at_once(one)):
        part = value[chosen].float().nan_to_num(0.0, 0.0, 0.0)
        averaged[chosen] = _made_coarser(part, reading=reading, places=places, most=most)
    return averaged


def _made_coarser(
    value: torch.Tensor, *, reading: Reading, places: tuple[int, ...], most: int = MOST_ANYWHERE
) -> torch.Tensor:
    grid = reading(value)
    if grid.ndim == 2:
        return grid if grid.shape[1] <= most else functional.interpolate(grid[:, None], (most,), mode="area")[:, 0]
    wanted = tuple(min(size, limit) for size, limit in zip(grid.shape[2:], places, strict=True))
    return grid if wanted == tuple(grid.shape[2:]) else functional.interpolate(grid, wanted, mode="area")


def _at_once(one: torch.Tensor) -> int:
    """How many samples of the size of one are looked at together."""
    return max(1, _NUMBERS_TOGETHER // one.numel())


def _together(loss: Callable[[torch.Tensor], torch.Tensor], memory_bytes: float) -> int:
    """How many samples of a batch are worked on at a time: by what the first one's loss keeps for its gradient."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if tensor.is_leaf and tensor.requires_grad else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(torch.zeros(1, dtype=torch.long))
    return max(1, int(min(BATCH, memory_bytes / (_COPIES_IN_STEP * max(1, kept)))))


def _mean(loss: Callable[[torch.Tensor], torch.Tensor], chosen: torch.Tensor, together: int) -> float:
    with torch.no_grad():
        return sum(float(loss(part)) * len(part) for part in torch.split(chosen, together)) / len(chosen)


def _train(
    decoder: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], known: int, together: int,
    *, seconds: float, steps: int, seed: int,
) -> int:  # fmt: skip
    """Train for ``steps`` or ``seconds``, whichever ends first, the rate falling to nothing; returns the steps done.

    The gradient of a batch is summed up from those of ``together`` samples at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
    began, done, spent = time.monotonic(), 0, 0.0
    while spent < 1.0:
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * spent))
        optimiser.zero_grad()
        batch = torch.randint(known, (min(BATCH, known),), generator=generator)
        for part in torch.split(batch, together):
            (loss(part) * (len(part) / len(batch))).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        done += 1
        spent = max(done / steps, (time.monotonic() - began) / max(seconds, 1e-9))
    return done


class _Decoder(nn.Module):
    """Brings every tensor to one grid, doubles that until it is as fine as the target, and draws.

    What it draws directly, it draws from the finest grids and from the mean of the known targets, which may be all that
    there is to tell, such as a background that never changes.
    """

    mean: torch.Tensor

    def __init__(self, given: Sequence[tuple[int, ...]], mean: torch.Tensor, width: int) -> None:
        super().__init__()
        channels, places = mean.shape[0], tuple(mean.shape[1:])
        self.register_buffer("mean", mean[None])
        dims = len(places)
        self.places = places
        self.mode = "bilinear" if dims == 2 else "linear"
        conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
        finest = max((shape[1:] for shape in given if len(shape) > 1), default=None, key=math.prod)
        self.start = tuple(
            max(1, min(a, b)) for a, b in zip(finest or [-(-p // 8) for p in places], places, strict=True)
        )
        self.stems = nn.ModuleList()
        for shape in given:
            if len(shape) > 1:
                self.stems.append(nn.Sequential(conv(shape[0], width, 3, padding=1), nn.ReLU()))
            else:
                size = width * math.prod(self.start)
                layers = [nn.Linear(shape[0], _BOTTLENECK), nn.ReLU(), nn.Linear(_BOTTLENECK, size), nn.ReLU()]
                self.stems.append(nn.Sequential(*layers, nn.Unflatten(1, (width, *self.start))))
        doublings = max(0, math.ceil(math.log2(max(p / s for p, s in zip(places, self.start, strict=True)))))
        layers = []
        for _ in range(doublings):
            layers += [up(width, width, 4, stride=2, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            conv(width, width, 3, padding=1), nn.ReLU(), conv(width, width, 3, padding=1), nn.ReLU(),
            conv(width, channels, 3, padding=1),
        )  # fmt: skip

        self.direct_from = _narrow(given, places)
        direct = channels + sum(given[index][0] for index in self.direct_from)
        self.reach = next(reach for reach in _REACHES if direct * reach**dims <= _SOLVED_NUMBERS)
        self.direct = conv(direct, channels, self.reach, padding=self.reach // 2)

    def forward(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        stems = [self._resized(stem(each), self.start) for stem, each in zip(self.stems, given, strict=True)]
        fine = self._resized(self.body(torch.stack(stems).sum(0)), self.places)
        drawn: torch.Tensor = self.head(fine)
        return drawn + self.direct(self._grids(given))  # type: ignore[no-any-return]

    def solve(self, given: Callable[[int], Sequence[torch.Tensor]], targets: torch.Tensor) -> None:
        """Begin with the best that the direct part can do, by least squares on some samples, and with nothing else.

        ``given`` is what the decoder takes of one of them.
        """
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)
        weight, bias = self.direct.parameters()
        unknowns = weight[0].numel() + 1
        # Of few places, such as the frames of a spectrogram, more samples are needed.
        samples = min(len(targets), max(_SOLVED_SAMPLES, -(-_ROWS_FOR_EACH * unknowns // math.prod(self.places))))
        rows = min(math.prod(self.places), -(-_ROWS_FOR_EACH * unknowns // samples))
        products, sums = torch.zeros(unknowns, unknowns, dtype=torch.double), torch.zeros(unknowns, weight.shape[0])
        generator = torch.Generator().manual_seed(0)
        for index in range(samples):
            seen = _surroundings(self._grids(given(index)), self.reach)
            chosen = torch.randperm(len(seen), generator=generator)[:rows]
            seen = torch.cat([seen[chosen], torch.ones(rows, 1)], 1).double()
            products += seen.T @ seen
            sums = sums + seen.T @ targets[index].flatten(1).T[chosen].double()
        ridge = _RIDGE * products.diagonal().mean()
        solved = torch.linalg.solve(products + ridge * torch.eye(unknowns, dtype=torch.double), sums).float()
        with torch.no_grad():
            weight.copy_(solved[:-1].T.reshape(weight.shape))
            bias.copy_(solved[-1])

    def _grids(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        mean = self.mean.expand(len(given[0]), *self.mean.shape[1:])
        return torch.cat([mean, *(self._resized(given[index], self.places) for index in self.direct_from)], 1)

    def _resized(self, value: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
        if tuple(value.shape[2:]) == places:
            return value
        if all(new <= old for new, old in zip(places, value.shape[2:], strict=True)):
            return functional.interpolate(value, places, mode="area")  # as the target was made coarser
        return functional.interpolate(value, places, mode=self.mode, align_corners=False)


def _narrow(given: Sequence[tuple[int, ...]], places: tuple[int, ...]) -> list[int]:
    """Which grids are drawn from directly: those as fine as the target first, then those of the fewest channels."""
    found: list[int] = []
    grids = [index for index, shape in enumerate(given) if len(shape) > 1]
    for index in sorted(grids, key=lambda index: (given[index][1:] != places, given[index][0])):
        if sum(given[other][0] for other in (*found, index)) <= _LINEAR_CHANNELS:
            found.append(index)
    return found


def _surroundings(grid: torch.Tensor, side: int) -> torch.Tensor:
    """``[places, channels x reach]`` of one sample ``[1, channels, *places]``, as a convolution sees them."""
    flat = grid if grid.ndim == 4 else grid[:, :, None]
    reach = (side if grid.ndim == 4 else 1, side)
    return functional.unfold(flat, reach, padding=(reach[0] // 2, reach[1] // 2))[0].T
