"""How much is taken to leak where no attack was made: only what is proven to bound it, else all.

What crosses a cut in fp32 without a defence is what all that lies deeper is computed from. Of a codec that loses
something, or of noise that is made afresh at each cut, that is not true.
"""

from collections.abc import Mapping, Sequence

from splitplane.domain.profiles import BASE_CODECS

MOST_CUTS = 6
"""Cuts that are attacked where nobody names them: more would leave each attack little time."""


def spread(measured: Mapping[tuple[int, str], float], cuts: int, *, defended: bool = False) -> list[dict[str, float]]:
    """What each codec leaks at each of ``cuts`` cuts, told from those that were measured and never below them.

    A codec that was not measured at a cut shows no more than fp32 there, from which it is computed; fp32 that was not
    measured no more than at the nearest shallower cut where it was, unless the tensors are ``defended``. Where there is
    neither, all is shown.
    """
    leaks: list[dict[str, float]] = []
    for cut in range(cuts):
        whole = leaks[-1]["fp32"] if leaks and not defended else 1.0
        if (cut, "fp32") in measured:
            whole = _at_least(measured, cut, "fp32")
        leaks.append(
            {codec: _at_least(measured, cut, codec) if (cut, codec) in measured else whole for codec in BASE_CODECS}
        )
    return leaks


def _at_least(measured: Mapping[tuple[int, str], float], cut: int, codec: str) -> float:
    """The most that was got of what holds no more: a coarser codec at the same cut, or the same codec deeper.

    An attack that gets less of what holds more was too weak there. No codec deeper holds more than fp32 does here.
    """
    coarser = BASE_CODECS[BASE_CODECS.index(codec) :]
    return max(
        score
        for (other, tried), score in measured.items()
        if (other == cut and tried in coarser) or (other > cut and (tried == codec or codec == "fp32"))
    )


def choose_cuts(candidates: Sequence[int], most: int) -> list[int]:
    """At most so many of the cuts, evenly from the first to the last."""
    if len(candidates) <= most:
        return list(candidates)
    return sorted({candidates[round(i * (len(candidates) - 1) / max(1, most - 1))] for i in range(most)})
