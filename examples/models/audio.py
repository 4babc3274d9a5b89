"""Frames of a voice for demo and tests: a recorded one, and a synthetic one whose true pitch is known.

The recording is ten seconds of read English that the PyPI package useful-moonshine-onnx ships (MIT). The synthetic
voice, by which a pitch tracker's answer can be judged, is modelled as source and filter: harmonics of a gliding
fundamental with vibrato, weighted by a glottal spectrum and by the formants of a vowel (frequencies after Peterson and
Barney 1952), with a little breath noise.
"""

import importlib.util
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 16_000
"""Samples per second that CREPE was trained for."""
FRAME, HOP = 1024, 160
"""Samples per frame (64 ms), and between the starts of neighbouring frames (10 ms)."""
SYLLABLE_SECONDS = 0.5
BREATH = 0.01

FORMANTS = {
    "a": ((730, 90), (1090, 110), (2440, 170)),
    "e": ((530, 70), (1840, 100), (2480, 160)),
    "i": ((270, 60), (2290, 110), (3010, 180)),
    "o": ((570, 80), (840, 100), (2410, 160)),
    "u": ((300, 60), (870, 90), (2240, 150)),
}
"""Centre and bandwidth in hertz of each vowel's first three formants."""

Array = npt.NDArray[np.float32]


def recorded(count: int) -> Array:
    """``count`` frames spread evenly over the recording, ``[count, 1024]`` fp32, each of zero mean and unit variance.

    Raises:
        ModuleNotFoundError: the package with the recording is not installed.
    """
    spec = importlib.util.find_spec("moonshine_onnx")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the recorded voice comes with a package: pip install --no-deps useful-moonshine-onnx"
        )
    with wave.open(str(Path(spec.submodule_search_locations[0]) / "assets" / "beckett.wav")) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise ValueError(f"the recording is not 16-bit mono at {RATE} Hz: {file.getparams()}")
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64)
    starts = np.linspace(0, samples.size - FRAME, count).astype(int)
    return _normalised(np.stack([samples[start : start + FRAME] for start in starts]))


def frames(count: int, seed: int = 0) -> Array:
    """``count`` neighbouring frames of a synthetic voice, ``[count, 1024]`` fp32, of zero mean and unit variance."""
    return voice(count, seed)[0]


def voice(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Frames as :func:`frames` gives them, and the fundamental in hertz at each one's centre, ``[count]``."""
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    generator = np.random.default_rng(seed)
    needed = FRAME + (count - 1) * HOP
    syllables = [_syllable(generator) for _ in range(-(-needed // int(SYLLABLE_SECONDS * RATE)))]
    samples = np.concatenate([sound for sound, _ in syllables])[:needed]
    fundamental = np.concatenate([hertz for _, hertz in syllables])
    cut = _normalised(np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP])
    return cut, fundamental[FRAME // 2 :: HOP][:count].astype(np.float32)


def _normalised(cut: npt.NDArray[np.float64]) -> Array:
    """Frames of zero mean and unit variance, as CREPE wants them."""
    centred = cut - cut.mean(axis=1, keepdims=True)
    return (centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-8)).astype(np.float32)


def _syllable(generator: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Samples and fundamental of one vowel, sung at a pitch that glides by up to two semitones."""
    time = np.arange(int(SYLLABLE_SECONDS * RATE)) / RATE
    start = generator.uniform(110.0, 330.0)
    glide = generator.uniform(-2.0, 2.0) * time / SYLLABLE_SECONDS
    vibrato = 0.3 * np.sin(2 * np.pi * (5.5 * time + generator.uniform()))
    hertz = start * 2.0 ** ((glide + vibrato) / 12.0)
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    formants = FORMANTS[str(generator.choice(sorted(FORMANTS)))]
    sound = np.zeros_like(time)
    for harmonic in range(1, int(RATE / 2 / hertz.max()) + 1):
        # The glottis falls by 12 dB an octave, radiation at the lips gives 6 back.
        sound += _resonance(harmonic * hertz, formants) / harmonic * np.sin(harmonic * phase)
    sound += BREATH * sound.std() * generator.standard_normal(time.size)
    fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.03)
    return sound * (0.1 + 0.9 * fade), hertz


def _resonance(hertz: npt.NDArray[np.float64], formants: tuple[tuple[int, int], ...]) -> npt.NDArray[np.float64]:
    """Gain of two-pole resonators in series, each of gain 1 at 0 Hz."""
    gain = np.ones_like(hertz)
    for centre, width in formants:
        gain *= centre**2 / np.sqrt((centre**2 - hertz**2) ** 2 + (width * hertz) ** 2)
    return gain
