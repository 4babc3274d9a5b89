"""What is heard of a signal: the logarithm of the magnitudes of its short-time spectrum, without phase.

A voice is understood, and known again, by where its spectrum has peaks and how these move. Its waveform depends on
phase beside that, so that a reconstruction may explain nothing of the wave and yet sound like it.
"""

import torch
from torch.nn import functional

SHORTEST = 64
"""Shorter signals have no spectrum to speak of."""
MOST_CHANNELS = 8
"""Of a signal; what has more is not heard, such as the bands of a spectrogram."""
_WINDOWS = (16, 512)
_PARTS = 4
"""The window (Hann) is the largest power of two in a quarter of the signal, within these; the hop half of it."""
_SMOOTHED = 3
"""Bins, and frames, of which the mean is taken: a single one of what is noise is off by chance."""
_MOST_BINS, _MOST_FRAMES = 64, 64
_FLOOR = 1e-4
"""In parts of the root of the mean square of all magnitudes: what is softer is silence."""
_NUMBERS_TOGETHER = 1 << 21


def spectrogram(signals: torch.Tensor) -> torch.Tensor | None:
    """``[n, channels x bins, frames]`` in 0..1 of signals ``[n, channels, places]``; ``None`` where there is nothing to
    hear."""
    samples, channels, places = signals.shape
    if channels > MOST_CHANNELS or places < SHORTEST:
        return None
    smallest, largest = _WINDOWS
    window = max(smallest, min(largest, 1 << ((places // _PARTS).bit_length() - 1)))
    low, high = signals.aminmax()
    middle = signals.mean()

    def magnitudes(part: torch.Tensor) -> torch.Tensor:
        """``[part x channels, bins, frames]``."""
        level = ((part - middle) / (high - low).clamp_min(1e-12)).flatten(0, 1)
        transformed = torch.stft(level, window, window // 2, window=torch.hann_window(window), return_complex=True)
        return transformed.abs()

    parts = torch.split(signals, max(1, _NUMBERS_TOGETHER // (channels * places)))
    squares = sum(float(magnitudes(part).double().pow(2).mean()) * len(part) for part in parts)
    floor = max(1e-12, _FLOOR * (squares / samples) ** 0.5)
    found = torch.cat([_smoothed((magnitudes(part) + floor).log()) for part in parts])
    found = found.reshape(samples, -1, found.shape[2])
    lowest, highest = found.aminmax()
    return (found - lowest) / (highest - lowest).clamp_min(1e-12)


def _smoothed(values: torch.Tensor) -> torch.Tensor:
    averaged = functional.avg_pool2d(values[:, None], _SMOOTHED)
    size = min(_MOST_BINS, averaged.shape[2]), min(_MOST_FRAMES, averaged.shape[3])
    return functional.interpolate(averaged, size, mode="area")[:, 0]
