"""How much of the input can be told from what crosses a cut: measured by an attack, so a lower bound.

A stronger attacker may do better. Of what was not attacked, ``domain.leaks`` tells how much it counts as leaking.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from splitplane.domain.calibrations import UNREAD, LeakFound
from splitplane.domain.defences import Defence
from splitplane.model import scores
from splitplane.model.accuracy import crossed
from splitplane.model.arrangements import NUMBERS
from splitplane.model.calibration import Calibration, Runs, run_on
from splitplane.model.defending import defend
from splitplane.model.errors import CalibrationError
from splitplane.model.inversion import STEPS, WIDTHS
from splitplane.model.linear import Linear
from splitplane.model.memory import available_bytes, grown
from splitplane.model.profile import Codec
from splitplane.model.targets import Drawing, Got, targets_of

ATTACK = "inversion decoder, or ridge regression, trained on calibration inputs (after He, Zhang, Lee 2019)"
BUDGET_SECONDS = 600.0
"""Default time for all attacks on a model."""
MOST_SAMPLES, LEAST_SAMPLES = 4096, 200
"""Of fewer than the least an attacker learns too little for its failure to say anything."""
RAW = "none needed"
"""Stands for the decoder where an input crosses as it is."""
LINEAR = "linear"
"""Stands for it where it is a linear attacker, which is solved and takes no steps."""
PREPARING = 0.25
"""Share of the budget in which the inputs are run to the cuts."""
TRIED = 16
"""Inputs that are run together, where memory allows, and by which the time of the others is told."""
WORKING = 0.5
"""Of the memory for what is held, so much more may be taken by what is worked on: a run, a step of training."""
_FLOAT = 4
_COPIES_OF_INPUTS, _COPIES_OF_CUTS = 5, 3
"""In 32 bits, that are held at once: the inputs as given, as chosen, as drawn, as looked at in two forms; what left,
what arrived, that made coarser."""
HELD_OUT = 5
"""One sample in so many is kept for scoring."""
WEAKEST_CONTROL, FEWEST_STEPS = 0.9, 100
"""Attacks that score less on the input itself, or were trained for less, are too weak for a limit to rest on them."""
LEAST_SKILL = 0.05
"""Who gets less is at a blind guess."""
CORRELATED_SAMPLES = 400


@dataclass(frozen=True, slots=True)
class Attack:
    """What one decoder got of one of the inputs, of held-out samples.

    ``score`` is the mean SSIM of images, the mean share of tokens recovered, or the share of variance explained of
    other inputs; ``skill`` how much of what a blind guess lacks of 1 that makes up; ``psnr`` in dB, not of tokens;
    ``above`` the share of samples whose score exceeds the threshold; ``sure`` whether what crosses was surely read in a
    way that it may be meant in.
    """

    cut: int
    codec: str
    decoder: str
    score: float
    skill: float
    psnr: float | None
    above: float
    steps: int
    target: str = ""
    sure: bool = True

    @property
    def tells(self) -> bool:
        """Whether the score says anything: a blind guess of what may have been read in a wrong way doesn't."""
        return self.sure or self.skill >= LEAST_SKILL


@dataclass(frozen=True, slots=True)
class LeakReport:
    """``input_control`` should be about 1, ``shuffled_control`` about what a guess without looking scores: of several
    inputs the one that was got worst, and the one that was guessed best. ``shuffled_skill`` should be about 0.

    ``correlations`` are bias-corrected distance correlations by cut, before any codec; ``rank_correlation`` is theirs
    with the scores. ``missed`` are the pairs of cut and codec for which no time was left.
    """

    score: str
    samples: int
    input_control: float
    shuffled_control: float
    shuffled_skill: float
    attacks: tuple[Attack, ...]
    correlations: Mapping[int, float]
    rank_correlation: float | None
    missed: int = 0
    attack: str = ATTACK

    @property
    def weakness(self) -> str:
        """Why the attacks are too weak for a limit to rest on them; empty if they are not."""
        if not self.input_control >= WEAKEST_CONTROL:
            return f"the attack gets only {self.input_control:.2f} of the input itself"
        fewest = min(
            (attack.steps for attack in self.attacks if attack.decoder not in (RAW, LINEAR)), default=FEWEST_STEPS
        )
        if fewest < FEWEST_STEPS:
            return f"an attack was trained for {fewest} steps only, not {FEWEST_STEPS}"
        if self.missed:
            return f"the budget ended before {self.missed} of all pairs of cut and codec were attacked"
        if self.attacks and not self.worst():
            return UNREAD
        return ""

    def found(self, sha256: str) -> LeakFound:
        """What a profile keeps of it; ``sha256`` is that of the file of inputs."""
        return LeakFound(
            self.attack, self.score, self.samples, self.input_control, self.shuffled_control, self.shuffled_skill,
            self.weakness, self.worst(), sha256,
        )  # fmt: skip

    def worst(self) -> dict[tuple[int, str], float]:
        """By (cut, codec), the score of the decoder that did best, of the input that it did best on.

        Where the attack tells nothing of any input, that is left out, as if it had not been attacked; where it tells
        something of some inputs only, all counts as shown.
        """
        found: dict[tuple[int, str], float] = {}
        for attack in self.attacks:
            key = attack.cut, attack.codec
            found[key] = max(found.get(key, 0.0), attack.score)
        untold = self.untold()
        told = {(cut, codec) for cut, codec, _ in {_key(each) for each in self.attacks} - untold}
        partly = {(cut, codec) for cut, codec, _ in untold}
        return {key: 1.0 if key in partly else score for key, score in found.items() if key in told}

    def untold(self) -> set[tuple[int, str, str]]:
        """The (cut, codec, input) where the attack tells nothing."""
        told: dict[tuple[int, str, str], bool] = {}
        for attack in self.attacks:
            told[_key(attack)] = told.get(_key(attack), False) or attack.tells
        return {key for key, tells in told.items() if not tells}


def _key(attack: Attack) -> tuple[int, str, str]:
    return attack.cut, attack.codec, attack.target


def measure_leak(
    partition: Runs,
    calibration: Calibration,
    codecs: Mapping[str, Codec],
    cuts: Sequence[int],
    *,
    budget_seconds: float = BUDGET_SECONDS,
    threshold: float = 0.5,
    steps: int = STEPS,
    threads: int = 2,
    memory_bytes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> LeakReport:
    """Attack every (cut, codec) with both decoders, and the two controls.

    So many of the calibration inputs are drawn at random that these and what crosses for them take at most
    ``memory_bytes`` (by default half of what is available), and that running them takes ``PREPARING`` of the budget.
    As many are run, or trained on, at a time as ``WORKING`` of that holds, but one at least.
    Raises :class:`CalibrationError` where too few are left, and ``ValueError`` without a cut.
    """
    if not cuts:
        raise ValueError("there is no cut to attack")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        end = time.monotonic() + budget_seconds
        memory = available_bytes() // 2 if memory_bytes is None else memory_bytes
        samples, together = _affordable(partition, calibration, codecs, cuts, PREPARING * budget_seconds, memory)
        return _measure(
            partition, calibration.sample(samples), codecs, cuts, end, threshold, steps, WORKING * memory, together,
            progress,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _affordable(
    partition: Runs, calibration: Calibration, codecs: Mapping[str, Codec], cuts: Sequence[int], seconds: float,
    memory: int,
) -> tuple[int, int]:  # fmt: skip
    """How many inputs memory and time allow, and how many of them are run together."""
    if calibration.samples < LEAST_SAMPLES:
        raise CalibrationError(
            f"leak is measured on {LEAST_SAMPLES} calibration inputs at least, better thousands, and there are only "
            f"{calibration.samples}"
        )
    one = {name: value[:1] for name, value in calibration.inputs.items()}
    taken = grown(lambda: run_on(partition, 0, max(cuts), one)) if cuts else 0
    together = max(1, min(TRIED, int(WORKING * memory / max(1, taken))))
    few = {name: value[:together] for name, value in calibration.inputs.items()}
    largest, spent = 0, 0.0
    for cut in cuts:
        run_on(partition, 0, cut, few)  # which compiles it
        started = time.monotonic()
        raw = run_on(partition, 0, cut, few)
        for codec in codecs.values():
            crossed(raw, codec)
        spent += time.monotonic() - started
        largest = max(largest, _bytes_of_one(raw))
    each = _COPIES_OF_INPUTS * _bytes_of_one(few) + _COPIES_OF_CUTS * largest
    by_memory, by_time = memory // each, int(together * seconds / max(spent, 1e-9))
    if by_memory < LEAST_SAMPLES:
        raise CalibrationError(
            f"{LEAST_SAMPLES} inputs and what crosses for them take {LEAST_SAMPLES * each / 1e6:.0f} MB, of which there"
            f" are {memory / 1e6:.0f}: give the tier's pods more memory, or measure at cuts that carry less"
        )
    if by_time < LEAST_SAMPLES:
        raise CalibrationError(
            f"to run {LEAST_SAMPLES} inputs to {len(cuts)} cuts takes {spent * LEAST_SAMPLES / together:.0f} s, and no"
            f" more than {seconds:.0f} s of the budget is for that: raise the budget"
        )
    return min(MOST_SAMPLES, by_memory, by_time), together


def _bytes_of_one(tensors: Mapping[str, torch.Tensor]) -> int:
    """Of one sample, as numbers of 32 bits at least."""
    return sum(value[0].numel() * max(_FLOAT, value.element_size()) for value in tensors.values())


def _measure(
    partition: Runs,
    calibration: Calibration,
    codecs: Mapping[str, Codec],
    cuts: Sequence[int],
    end: float,
    threshold: float,
    steps: int,
    working: float,
    together: int,
    progress: Callable[[str], None],
) -> LeakReport:
    """The samples are in random order, and the last are held out.

    After ``end`` neither another cut is attacked, but for the first, nor another codec.

    ``together`` samples are run at once, and a step of training takes about ``working`` bytes.
    """
    targets = targets_of(calibration)
    if not targets:
        raise CalibrationError("every input is the same in all calibration inputs, so there is nothing to tell of them")
    held_out = max(1, calibration.samples // HELD_OUT)
    runs = len(cuts) * len(codecs) * len(WIDTHS) + 2
    left = runs * len(targets)

    def judged(got: Got, secret: str, cut: int, codec: str, decoder: str, unknown: float = 1.0) -> Attack:
        score = _share(got.scores, unknown)
        return Attack(
            cut, codec, decoder, score=score, skill=scores.skill(score, got.blind), psnr=got.psnr,
            above=float((got.scores > threshold).float().mean()), steps=got.steps, target=secret,
            sure=got.sure,
        )  # fmt: skip

    def tell(tensors: Mapping[str, torch.Tensor], asked: Sequence[str], cut: int, codec: str) -> list[Attack]:
        drawn = {name: target for name in asked if isinstance(target := targets[name], Drawing)}
        if not drawn:
            return []
        linear = Linear(tensors, calibration.samples - held_out, working)
        return [
            judged(target.tell(linear, calibration.samples), name, cut, codec, LINEAR) for name, target in drawn.items()
        ]

    def attack(
        tensors: Mapping[str, torch.Tensor], secret: str, cut: int, codec: str, decoder: str, *, unknown: float = 1.0
    ) -> Attack:
        nonlocal left
        seconds = max(0.0, end - time.monotonic()) / left
        left -= 1
        got = targets[secret].attack(
            tensors, held_out, width=WIDTHS[decoder], seconds=seconds, steps=steps, memory_bytes=working
        )
        result = judged(got, secret, cut, codec, decoder, unknown)
        progress(f"leak: cut {cut} {codec} {decoder}: {result.score:.2f} of {secret}; {left} attacks to go")
        return result

    # What crosses cut 0 are the inputs.
    at_input = min(attack(calibration.inputs, secret, 0, "fp32", "large", unknown=0.0).score for secret in targets)
    attacks: list[Attack] = []
    correlations: dict[int, float] = {}
    shuffled: list[Attack] = []
    attacked: list[tuple[int, str]] = []

    def attack_others(raw: Mapping[str, torch.Tensor], cut: int) -> None:
        order = torch.randperm(calibration.samples, generator=torch.Generator().manual_seed(1))
        mixed = {name: value[order] for name, value in raw.items()}
        shuffled.extend(tell(mixed, list(targets), cut, "fp32"))
        shuffled.extend(attack(mixed, secret, cut, "fp32", "large") for secret in targets)

    def attack_arrived(arrived: Mapping[str, torch.Tensor], cut: int, codec: str) -> None:
        nonlocal left
        raw = [secret for secret, target in targets.items() if target.crosses(arrived)]
        left -= len(raw) * len(WIDTHS)
        attacks.extend(
            Attack(cut, codec, RAW, score=1.0, skill=1.0, psnr=None, above=1.0, steps=0, target=secret)
            for secret in raw
        )
        asked = [secret for secret in targets if secret not in raw]
        attacks.extend(tell(arrived, asked, cut, codec))
        attacks.extend(attack(arrived, secret, cut, codec, decoder) for secret in asked for decoder in WIDTHS)

    def attack_cut(raw: Mapping[str, torch.Tensor], cut: int) -> None:
        few = min(CORRELATED_SAMPLES, calibration.samples)
        flat = _flat(raw, few)
        correlations[cut] = max(scores.distance_correlation(target.numbers[:few], flat) for target in targets.values())
        del flat
        if not shuffled:
            attack_others(raw, cut)
        for index, (name, codec) in enumerate(codecs.items()):
            if index and time.monotonic() >= end:
                return
            attacked.append((cut, name))
            attack_arrived(_crossed(raw, codec, together), cut, name)

    for cut in sorted(cuts):  # nothing keeps what crosses one cut, or arrived, while the next is made
        if attacked and time.monotonic() >= end:
            break
        attack_cut(_activations(partition, calibration, cut, together), cut)
    best: dict[int, float] = {}
    for each in attacks:
        best[each.cut] = max(best.get(each.cut, 0.0), each.score)
    return LeakReport(
        score=", ".join(sorted({target.score for target in targets.values()})),
        samples=calibration.samples,
        input_control=at_input,
        shuffled_control=max((each.score for each in shuffled), default=0.0),
        shuffled_skill=max((each.skill for each in shuffled), default=0.0),
        attacks=tuple(attacks),
        correlations=correlations,
        rank_correlation=scores.rank_correlation(list(correlations.values()), [best[cut] for cut in correlations]),
        missed=len(cuts) * len(codecs) - len(attacked),
    )


def _share(each: torch.Tensor, unknown: float) -> float:
    """The mean of scores, from 0 to 1, or what counts where that is no number."""
    mean = float(each.mean())
    return unknown if math.isnan(mean) else min(1.0, max(0.0, mean))


def _flat(tensors: Mapping[str, torch.Tensor], samples: int) -> torch.Tensor:
    return torch.cat([NUMBERS(value[:samples].float()).nan_to_num(0.0, 0.0, 0.0) for value in tensors.values()], 1)


def defended(codec: Codec, defence: Defence, *, seed: int = 0) -> Codec:
    """A codec before which a defence is carried out."""
    generator = torch.Generator().manual_seed(seed)
    return Codec(
        encode=lambda tensors: codec.encode(defend(tensors, defence, generator)),
        decode=codec.decode,
        size=codec.size,
    )


def _activations(partition: Runs, calibration: Calibration, cut: int, together: int) -> dict[str, torch.Tensor]:
    """What crosses a cut, ``[samples, ...]``."""
    return _in_parts(
        lambda part: run_on(partition, 0, cut, {name: value[part] for name, value in calibration.inputs.items()}),
        calibration.samples,
        together,
    )


def _crossed(raw: Mapping[str, torch.Tensor], codec: Codec, together: int) -> dict[str, torch.Tensor]:
    """What arrives of that, a sample at a time."""
    samples = len(next(iter(raw.values())))
    return _in_parts(lambda part: crossed({name: value[part] for name, value in raw.items()}, codec), samples, together)


def _in_parts(
    make: Callable[[slice], Mapping[str, torch.Tensor]], samples: int, together: int
) -> dict[str, torch.Tensor]:
    """Tensors made part by part, and held once. They are no inference tensors, and can be trained on."""
    whole: dict[str, torch.Tensor] = {}
    for start in range(0, samples, together):
        part = slice(start, min(samples, start + together))
        for name, value in make(part).items():
            if name not in whole:
                whole[name] = torch.empty(samples, *value.shape[1:], dtype=value.dtype)
            whole[name][part] = value
    return whole
