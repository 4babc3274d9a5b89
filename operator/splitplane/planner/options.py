"""Ways to cross from one stage to the next: a cut and a codec each. They depend on the profile alone and are kept."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from splitplane.domain.inputs import past_inputs
from splitplane.domain.profiles import CODECS, Cut, Profile, base_codec
from splitplane.planner.arrays import Array, Bools, Ints

LOSS_STEP = 0.001
"""Accuracy losses are compared in whole steps, rounded up: about what a thousand calibration inputs can tell apart."""

_ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-8}
_COARSEST_ROUNDING = 2.0**-4


@dataclass(frozen=True, slots=True)
class CutTable:
    """What a profile says of each codec (row, by falling fidelity) at each cut (column).

    ``sent`` is in bytes of one sample, and defined for codecs that are not ``offered`` there, too. ``leak`` and
    ``loss`` are shares; where they are not measured, stand-ins that only order plans. From cut ``past_inputs`` on no
    input crosses as it is.
    """

    codecs: tuple[str, ...]
    offered: Bools
    sent: Array
    leak: Array
    leak_measured: Bools
    loss: Array
    loss_measured: Bools
    past_inputs: int


@dataclass(frozen=True, slots=True)
class Options:
    """Columns over the options, by rising cut, then falling fidelity.

    ``codec`` indexes the table's codecs; ``sent`` crosses, ``full`` would as fp32, in bytes; ``loss`` is in steps.
    """

    cut: Ints
    codec: Ints
    sent: Array
    full: Array
    leak: Array
    leak_measured: Bools
    loss: Ints
    loss_measured: Bools

    def __len__(self) -> int:
        return len(self.cut)

    def where(self, mask: Bools) -> "Options":
        return Options(*(getattr(self, name)[mask] for name in self.__slots__))


def cut_table(profile: Profile) -> CutTable:
    """The table of a profile, over all codecs that this release or the profile knows."""
    cuts = profile.cuts
    codecs = (*CODECS, *sorted({codec for cut in cuts for codec in cut.wire_bytes} - set(CODECS)))
    sent = np.array([[float(_wire_bytes(cut, codec)) for cut in cuts] for codec in codecs])
    # What crosses raw under a base codec loses nothing, compressed or not.
    bases = [codecs.index(base) if (base := base_codec(codec)) in codecs else row for row, codec in enumerate(codecs)]
    lossless = (sent >= sent[codecs.index("fp32")])[bases]
    depth = np.linspace(1.0, 0.0, len(cuts))
    rounding = np.array([_ROUNDING.get(base_codec(codec), _COARSEST_ROUNDING) for codec in codecs])[:, None]
    leaks = np.array([[_measured(cut.leakage, codec) for cut in cuts] for codec in codecs])
    leaks[:, 0] = 1.0
    losses = np.array([[_measured(cut.accuracy_loss, codec) for cut in cuts] for codec in codecs])
    losses = np.where(np.isnan(losses) & lossless, 0.0, np.maximum(0.0, losses))
    return CutTable(
        codecs=codecs,
        offered=np.array([[codec in cut.wire_bytes for cut in cuts] for codec in codecs]),
        sent=sent,
        leak=np.where(np.isnan(leaks), depth, leaks),
        leak_measured=~np.isnan(leaks),
        loss=np.where(np.isnan(losses), rounding, losses),
        loss_measured=~np.isnan(losses),
        past_inputs=past_inputs(cuts),
    )


def crossing_options(profile: Profile, table: CutTable, allowed: Collection[str]) -> Options:
    """Every inner cut with every allowed codec, but for codecs that another is at least as good as at that cut."""
    chosen = table.offered & np.array([codec in allowed for codec in table.codecs])[:, None]
    chosen[:, [0, -1]] = False
    chosen &= ~_dominated(profile, table, chosen)
    cut, codec = (places.astype(np.int64) for places in np.nonzero(chosen.T))
    return Options(
        cut=cut,
        codec=codec,
        sent=table.sent[codec, cut],
        full=table.sent[table.codecs.index("fp32"), cut],
        leak=table.leak[codec, cut],
        leak_measured=table.leak_measured[codec, cut],
        loss=loss_steps(table.loss[codec, cut]),
        loss_measured=table.loss_measured[codec, cut],
    )


def loss_steps(loss: Array) -> Ints:
    """Accuracy losses in whole steps, rounded up."""
    return np.ceil(loss / LOSS_STEP - 1e-9).astype(np.int64)


def _dominated(profile: Profile, table: CutTable, chosen: Bools) -> Bools:
    """Where another chosen codec is at least as good in everything that sets codecs at one cut apart."""
    shape = table.sent.shape
    times = [
        [seconds(device.codec_times[codec]) if codec in device.codec_times else 0.0 for codec in table.codecs]
        for device in profile.devices.values()
        for seconds in (attrgetter("encode_seconds_per_byte"), attrgetter("decode_seconds_per_byte"))
    ]
    merits = [
        table.sent, table.leak, ~table.leak_measured, loss_steps(table.loss), ~table.loss_measured,
        *(np.broadcast_to(np.array(each)[:, None], shape) for each in times),
    ]  # fmt: skip
    result = np.zeros(shape, dtype=np.bool_)
    for codec in range(shape[0]):
        for rival in range(shape[0]):
            if rival != codec:
                no_worse = np.logical_and.reduce([merit[rival] <= merit[codec] for merit in merits])
                better = np.logical_or.reduce([merit[rival] < merit[codec] for merit in merits])
                # Of equals the one of higher fidelity stays.
                result[codec] |= chosen[rival] & no_worse & (better | (rival < codec))
    return result


def _measured(values: Mapping[str, float], codec: str) -> float:
    return values.get(codec, values.get(base_codec(codec), np.nan))


def _wire_bytes(cut: Cut, codec: str) -> int:
    """Bytes of one sample; a cut of integer tensors crosses as it is, whatever the codec."""
    return cut.wire_bytes[codec] if codec in cut.wire_bytes else max(cut.wire_bytes.values())
