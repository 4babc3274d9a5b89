"""``splitplane model accuracy`` and ``leak``: what crossing a cut costs in accuracy and shows of the input.

Both need real inputs, which stay on the machine that this runs on; only the shares go into the ModelProfile.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from splitplane.adapters.cluster import ClusterError
from splitplane.adapters.connecting import connect
from splitplane.adapters.kinds import MODEL_PROFILE
from splitplane.api.defences import to_defence
from splitplane.api.measured import with_accuracy, with_leakage
from splitplane.api.profiles import ModelProfileSpec
from splitplane.cli.models import AsJson, Factory, Folder, Inputs, Sha256, source_of
from splitplane.cli.plans import out
from splitplane.domain.calibrations import READ_FORMS, UNREAD, AccuracyFound, Metric
from splitplane.domain.defences import Defence
from splitplane.domain.leaks import MOST_CUTS, choose_cuts
from splitplane.domain.profiles import BASE_CODECS, ZSTD

if TYPE_CHECKING:
    from splitplane.model import ModelSource, Partition
    from splitplane.model.calibration import Calibration
    from splitplane.model.leak import LeakReport
    from splitplane.model.profile import Codec

WeightsUri = Annotated[str, typer.Option(help="As in spec.model.weights.uri, such as file:///...safetensors.")]
CalibrationFile = Annotated[
    Path,
    typer.Option(
        "--calibration", exists=True, dir_okay=False,
        help="Real inputs by name, samples first, and classes as 'labels' if known: .safetensors or .npz.",
    ),
]  # fmt: skip
Noise = Annotated[
    float,
    typer.Option(min=0.0, help="Gaussian noise on what crosses, in its standard deviations: what would it cost?"),
]
Dropout = Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of what crosses that is set to zero.")]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", help="Write the result into this ModelProfile, where the planner reads it."),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The ModelProfile's namespace.")]


def accuracy(
    factory: Factory,
    inputs: Inputs,
    weights: WeightsUri,
    calibration: CalibrationFile,
    sha256: Sha256 = None,
    path: Folder = None,
    metric: Annotated[
        str, typer.Option(help="As spec.model.calibration.metric: top1, top5, r2 or cosine.", show_default="what fits")
    ] = "",
    samples: Annotated[
        int, typer.Option(min=1, help="Use at most so many calibration inputs, drawn at random.")
    ] = 1000,
    noise: Noise = 0.0,
    dropout: Dropout = 0.0,
    profile: ProfileName = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Compare the model's answers, where it crosses each cut with each codec, with those of the unsplit fp32 model."""
    if metric not in ("", *get_args(Metric)):
        raise typer.BadParameter(f"no metric {metric}: give one of {', '.join(get_args(Metric))}")
    partition, given, codecs = _load(factory, inputs, weights, sha256, path, calibration, noise, dropout)
    from splitplane.model import ModelError
    from splitplane.model.accuracy import compare_codecs

    cuts, inner, defence = partition.graph.cuts, _inner_cuts(partition), Defence(noise, dropout)
    if profile is not None:
        _write(profile, namespace, partition.graph.fingerprint, defence, None)
    try:
        with Console(stderr=True).status("comparing") as status:
            found = compare_codecs(
                partition, given.sample(samples), codecs, inner, metric=metric, progress=status.update
            )  # fmt: skip
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        rows = [
            {
                "cut": each.cut, "name": cuts[each.cut].name, "codec": each.codec, "loss": each.loss,
                "lossBound": each.bound, "top1": each.top1, "cosine": each.cosine, "maxError": _finite(each.max_error),
            }
            for each in found.agreements
        ]  # fmt: skip
        told = {"metric": found.metric, "labels": found.labels, "whole": found.whole, "samples": found.samples}
        typer.echo(json.dumps({**told, "agreements": rows}, indent=2))
    else:
        table = Table("cut", "after", "codec", "loss", "at most (95 %)", "same top-1", "cosine", "largest error")
        for each in found.agreements:
            table.add_row(
                str(each.cut), cuts[each.cut].name, each.codec, f"{each.loss:.4f}", f"{each.bound:.4f}",
                _share(each.top1), f"{each.cosine:.6f}", f"{each.max_error:.1e}",
            )  # fmt: skip
        out.print(table)
        whole = "" if found.whole is None else f", of which the unsplit model gets {found.whole:.2%}"
        against = f"labels{whole}" if found.labels else "the unsplit model's answers"
        out.print(f"Loss of {found.metric} against {against}, on {found.samples} of {given.samples} samples.")
    if profile is not None:
        # fp32 loses nothing but behind a defence: a bound from so many samples would only say less.
        losses = {(each.cut, each.codec): each.bound for each in found.agreements if defence or each.codec != "fp32"}
        accuracy = AccuracyFound(found.metric, found.samples, found.whole, losses, given.sha256)
        _write(profile, namespace, partition.graph.fingerprint, defence, lambda spec: with_accuracy(spec, accuracy))


def leak(
    factory: Factory,
    inputs: Inputs,
    weights: WeightsUri,
    calibration: CalibrationFile,
    sha256: Sha256 = None,
    path: Folder = None,
    cut: Annotated[list[int] | None, typer.Option("--cut", help="Attack these cuts. Default: up to 6, evenly.")] = None,
    codec: Annotated[list[str] | None, typer.Option("--codec", help="Attack these codecs.")] = None,
    budget: Annotated[float, typer.Option(min=1.0, help="Seconds for all attacks.")] = 600.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps that each decoder is trained for, if time allows.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads to train on.")] = 2,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Tell the share of inputs that score more.")] = 0.5,
    noise: Noise = 0.0,
    dropout: Dropout = 0.0,
    profile: ProfileName = None,
    namespace: Namespace = "default",
    as_json: AsJson = False,
) -> None:
    """Train decoders to reconstruct the input from what crosses the cuts. A lower bound: others may see more."""
    partition, given, codecs = _load(factory, inputs, weights, sha256, path, calibration, noise, dropout)
    from splitplane.model import ModelError
    from splitplane.model.leak import measure_leak

    cuts, inner, wanted = partition.graph.cuts, _inner_cuts(partition), codec or ["fp32"]
    _check_cuts_and_codecs(cut or (), wanted, inner)
    if profile is not None:
        _write(profile, namespace, partition.graph.fingerprint, Defence(noise, dropout), None)
    try:
        with Console(stderr=True).status("attacking") as status:
            report = measure_leak(
                partition, given, {name: codecs[name] for name in wanted}, cut or choose_cuts(inner, MOST_CUTS),
                budget_seconds=budget, threshold=threshold, steps=steps, threads=threads, progress=status.update,
            )  # fmt: skip
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        typer.echo(json.dumps(leak_dict(report, [each.name for each in cuts]), indent=2))
    else:
        out.print(leak_table(report, [each.name for each in cuts], threshold))
        out.print(leak_controls(report))
    if profile is not None:
        if report.weakness:
            raise typer.BadParameter(f"{report.weakness}: too weak for a limit to rest on. {_remedy(report.weakness)}")
        found = report.found(given.sha256)
        _write(
            profile, namespace, partition.graph.fingerprint, Defence(noise, dropout),
            lambda spec: with_leakage(spec, found),
        )  # fmt: skip


def _inner_cuts(partition: "Partition") -> range:
    """The cuts between a model's segments. Raises ``typer.BadParameter`` that says why there is none."""
    graph = partition.graph
    inner = range(1, len(graph.cuts) - 1)
    if not inner:
        raise typer.BadParameter(f"nothing crosses a cut, for there is none: {graph.source.factory} {graph.verdict}")
    return inner


def _check_cuts_and_codecs(cuts: Sequence[int], codecs: Sequence[str], inner: range) -> None:
    """Raises ``typer.BadParameter`` that names what there is instead."""
    for each in cuts:
        if each not in inner:
            raise typer.BadParameter(f"no cut {each} to attack: give {inner[0]} to {inner[-1]}")
    for name in codecs:
        base = name.removesuffix(ZSTD)
        if base not in BASE_CODECS:
            raise typer.BadParameter(f"no codec {name}: give one of {', '.join(BASE_CODECS)}")
        if base != name:
            raise typer.BadParameter(f"{name} shows what {base} shows, for Zstandard loses nothing: give {base}")


def leak_along(
    source: "ModelSource",
    calibration: Path,
    *,
    budget_seconds: float,
    threads: int,
    progress: Callable[[float, str], None],
) -> "LeakReport | None":
    """Attack up to six cuts, evenly, in fp32; ``None`` of a model that has none. Raises :class:`ModelError`."""
    from splitplane.model import load_partition
    from splitplane.model.calibration import read_calibration
    from splitplane.model.leak import measure_leak
    from splitplane.runtime.profiling import wire_codecs

    partition, began = load_partition(source, 0, None), time.monotonic()
    inner = range(1, len(partition.graph.cuts) - 1)
    if not inner:
        progress(1.0, "no leak was measured, for the model has no cut")
        return None
    return measure_leak(
        partition, read_calibration(calibration, source.inputs), {"fp32": wire_codecs()["fp32"]},
        choose_cuts(inner, MOST_CUTS), budget_seconds=budget_seconds, threads=threads,
        progress=lambda text: progress(min(1.0, (time.monotonic() - began) / budget_seconds), text),
    )  # fmt: skip


def leak_dict(report: "LeakReport", names: Sequence[str]) -> dict[str, Any]:
    """A report in JSON; ``names`` are those of all cuts."""
    rows = [
        {
            "cut": each.cut, "name": names[each.cut], "codec": each.codec, "input": each.target,
            "decoder": each.decoder, "score": each.score, "skill": each.skill, "psnr": each.psnr, "above": each.above,
            "steps": each.steps, "tells": each.tells, "distanceCorrelation": report.correlations[each.cut],
        }
        for each in report.attacks
    ]  # fmt: skip
    return {
        "attack": report.attack, "score": report.score, "samples": report.samples,
        "controls": {
            "input": report.input_control, "shuffled": report.shuffled_control, "shuffledSkill": report.shuffled_skill,
        },
        "rankCorrelation": report.rank_correlation, "weakness": report.weakness, "attacks": rows,
    }  # fmt: skip


def leak_table(report: "LeakReport", names: Sequence[str], threshold: float = 0.5) -> Table:
    """A row for each attack; ``names`` are those of all cuts."""
    above = f"above {threshold:g}"
    table = Table(
        "cut", "after", "codec", "input", "decoder", report.score, "skill", "PSNR, dB", above, "steps", "distance corr."
    )
    for each in report.attacks:
        psnr = "" if each.psnr is None else f"{each.psnr:.1f}"
        table.add_row(
            str(each.cut), names[each.cut], each.codec, each.target, each.decoder, f"{each.score:.3f}",
            f"{each.skill:.3f}", psnr, f"{each.above:.0%}", str(each.steps), f"{report.correlations[each.cut]:.3f}",
        )  # fmt: skip
    return table


def leak_controls(report: "LeakReport") -> str:
    """What the figures are worth."""
    rank = report.rank_correlation
    weak = (
        f"\nToo weak for a limit to rest on: {report.weakness}. What looks safe may not be. {_remedy(report.weakness)}."
    )
    untold = sorted({(cut, codec) for cut, codec, _ in report.untold()})
    where = ", ".join(f"{cut} ({codec})" for cut, codec in untold)
    blind = f"\nAt a blind guess, where it is not known how numbers are arranged, which says nothing: cut {where}."
    return (
        f"Controls: the input itself {report.input_control:.3f} (should be about 1), other inputs' activations "
        f"{report.shuffled_control:.3f}, by skill {report.shuffled_skill:.3f} (should be about 0). Skill is how much a "
        "score makes up of what a blind guess lacks of 1. Rank correlation of distance correlation and score: "
        f"{'unknown' if rank is None else f'{rank:.2f}'}.\nA lower bound, by this attack: {report.attack}; a stronger "
        f"one may see more.{blind if untold else ''}{weak if report.weakness else ''}"
    )


def _remedy(weakness: str) -> str:
    if weakness == UNREAD:
        return f"No budget mends that: attack other cuts (--cut), or {READ_FORMS}"
    return "Give a larger --budget, fewer cuts, or more inputs"


def _load(
    factory: str, inputs: list[str], weights: str, sha256: str | None, path: list[Path] | None, calibration: Path,
    noise: float, dropout: float,
) -> "tuple[Partition, Calibration, Mapping[str, Codec]]":  # fmt: skip
    source = source_of(factory, inputs, weights, sha256, path)
    from splitplane.model import ModelError, load_partition
    from splitplane.model.calibration import read_calibration
    from splitplane.model.leak import defended
    from splitplane.runtime.profiling import wire_codecs

    # Zstandard loses nothing: what is true of a codec is true of it with that on top.
    codecs = {name: codec for name, codec in wire_codecs().items() if name in BASE_CODECS}
    if noise or dropout:
        codecs = {name: defended(codec, Defence(noise, dropout)) for name, codec in codecs.items()}
    try:
        with Console(stderr=True).status(f"exporting {factory}"):
            return load_partition(source, 0, None), read_calibration(calibration, source.inputs), codecs
    except ModelError as error:
        raise typer.BadParameter(str(error)) from error


def _write(
    name: str, namespace: str, fingerprint: str, defence: Defence,
    change: Callable[[ModelProfileSpec], ModelProfileSpec] | None,
) -> None:  # fmt: skip
    """Without a ``change``, see only whether one could be written, before time is spent."""
    try:
        asyncio.run(_patch(name, namespace, fingerprint, defence, change))
    except ClusterError as error:
        raise typer.BadParameter(f"ModelProfile {namespace}/{name}: {error}") from error


async def _patch(
    name: str, namespace: str, fingerprint: str, defence: Defence,
    change: Callable[[ModelProfileSpec], ModelProfileSpec] | None,
) -> None:  # fmt: skip
    cluster = await connect(component="splitplane-cli")
    try:
        body = await cluster.get(MODEL_PROFILE, name, namespace)
        spec = ModelProfileSpec.parse(body["spec"])
        if spec.fingerprint != fingerprint:
            raise typer.BadParameter(
                f"ModelProfile {namespace}/{name} is of another model ({spec.fingerprint}, here {fingerprint}): use "
                "the same factory, weights, inputs and versions of the libraries as its pods do"
            )
        theirs = to_defence(spec.defence)
        if theirs != defence:
            raise typer.BadParameter(
                f"ModelProfile {namespace}/{name} is of a model that crosses cuts with --noise {theirs.noise:g}"
                f" --dropout {theirs.dropout:g}, as its pipelines' objectives.defence says: measure with the same"
            )
        if change is None:
            return
        changed: dict[str, Any] = change(spec).dump()
        kept = {
            key: changed[key]
            for key in ("cuts", "accuracyMeasurement", "leakMeasurement")
            if changed.get(key) is not None
        }
        version = {"resourceVersion": body["metadata"]["resourceVersion"]}
        await cluster.merge(MODEL_PROFILE, name, namespace, {"metadata": version, "spec": kept})
    finally:
        await cluster.close()


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
