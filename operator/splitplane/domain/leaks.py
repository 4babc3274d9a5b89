"""How much is taken to leak where no attack was made: what the nearest shallower attacked cut leaks, never less.

With a codec that was not tried it is as much as with the next of higher fidelity; before the first attacked cut, all.
"""

from collections.abc import Mapping, Sequence

from splitplane.domain.profiles import BASE_CODECS

MOST_CUTS = 6
"""Cuts that are attacked where nobody names them: more would leave each attack little time."""


def spread(measured: Mapping[tuple[int, str], float], cuts: int) -> list[dict[str, float]]:
    """What each codec leaks at each of ``cuts`` cuts, told from those that were measured and never below them.

    A codec that was not measured at a cut shows no more than the next one of higher fidelity there; a cut that was not
    measured shows no more than the nearest shallower one that was. Where there is neither, all is shown.
    """
    # What a deeper cut shows, a shallower one must show, whatever this attack got of it.
    measured = {
        (cut, codec): max(score for (other, same), score in measured.items() if same == codec and other >= cut)
        for cut, codec in measured
    }
    leaks: list[dict[str, float]] = []
    for cut in range(cuts):
        here: dict[str, float] = {}
        for index, codec in enumerate(BASE_CODECS):
            finer = [measured[cut, other] for other in BASE_CODECS[: index + 1] if (cut, other) in measured]
            before = leaks[-1][codec] if leaks else 1.0
            here[codec] = finer[-1] if finer else before
        leaks.append(here)
    return leaks


def choose_cuts(candidates: Sequence[int], most: int) -> list[int]:
    """At most so many of the cuts, evenly from the first to the last."""
    if len(candidates) <= most:
        return list(candidates)
    return sorted({candidates[round(i * (len(candidates) - 1) / max(1, most - 1))] for i in range(most)})
