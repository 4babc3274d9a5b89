"""Drawing into files; matplotlib is needed for nothing else, and is loaded only here."""

import os
from pathlib import Path
from typing import Any

import typer


def new_figure(*, width: float, height: float) -> Any:
    """An empty figure, in inches. Needs matplotlib (``check_picture``)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write the figure in the form that the file's name says. Raises ``typer.BadParameter`` where it can't be."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}") from error


def check_picture(path: Path) -> None:
    """Raises ``typer.BadParameter`` if no picture can be written there: its folder is missing, its form unknown or not
    named, or matplotlib is not installed."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise typer.BadParameter("drawing needs matplotlib: pip install 'splitplane[plot]'") from None

    form = path.suffix.removeprefix(".").lower()
    if form not in FigureCanvasBase.filetypes:
        wrong = f"{form} is no form of picture" if form else "name the form of the picture by an ending"
        raise typer.BadParameter(f"{path}: {wrong}: {', '.join(FigureCanvasBase.filetypes)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise typer.BadParameter(f"{path}: {path.parent} is no folder that can be written to")
