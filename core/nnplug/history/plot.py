"""A figure of a run's history: losses, Dice, learning rate, epoch times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "pdf", "svg")

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_WIDTH_INCH, _HEIGHT_INCH = 7.2, 5.0  # two journal columns
_MOST_CLASSES_IN_LEGEND = 8
_TRAIN, _VAL, _DICE, _OTHER = "#0072B2", "#D55E00", "#009E73", "#333333"  # Okabe and Ito, for colour-blind readers


def plot_history(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of ``read_history``.

    Args:
        rows: one an epoch.
        path: PNG, PDF or SVG, by its suffix; text in PDF and SVG stays text.

    Raises:
        NnplugError: another suffix, or the file can not be written.
    """
    with _figure(Path(path)) as ((losses, dice), (rates, times)):
        _draw(losses, rows, {"train_loss": ("training", _TRAIN), "val_loss": ("validation", _VAL)}, "loss")
        _draw_classes(dice, rows)
        _draw(dice, rows, {"mean_dice": ("mean", _DICE), "ema_dice": ("moving average", _OTHER)}, "Dice (pseudo)")
        _draw(rates, rows, {"learning_rate": ("", _OTHER)}, "learning rate")
        _draw(times, rows, {"epoch_seconds": ("", _OTHER)}, "seconds per epoch")


def plot_folds(runs: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Draw several runs, a colour each; arguments and errors as of ``plot_history``, with the rows by label."""
    with _figure(Path(path)) as ((losses, dice), (rates, times)):
        for number, rows in enumerate(runs.values()):
            color = f"C{number % 10}"
            _draw(losses, rows, {"val_loss": ("", color)}, "validation loss")
            _draw(dice, rows, {"ema_dice": ("", color)}, "Dice (pseudo), moving average")
            _draw(rates, rows, {"learning_rate": ("", color)}, "learning rate")
            _draw(times, rows, {"epoch_seconds": ("", color)}, "seconds per epoch")
        # below the panels: the name of a model may be as wide as the figure
        losses.figure.legend(losses.get_lines(), runs, loc="outside lower center")


@contextmanager
def _figure(path: Path) -> Iterator[Any]:
    """Two by two axes to draw in; what was drawn is then in the file."""
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FORMATS:
        raise NnplugError(f"{path}: a plot is a .png, .pdf or .svg file.")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCH, _HEIGHT_INCH), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        yield panels
        (_, dice), (rates, times) = panels
        dice.set_ylim(0, 1)
        rates.set_ylim(bottom=0)
        times.set_ylim(bottom=0)
        for axes in (rates, times):
            axes.set_xlabel("epoch")
        replace_file(path, lambda file: figure.savefig(file, format=file_format, dpi=300))


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], lines: dict[str, tuple[str, str]], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for column, (name, color) in lines.items():
        _line(axes, rows, column, name, color, width=1.2)
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def _draw_classes(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    columns = [column for column in rows[0] if column.startswith("dice_")]
    if len(columns) < 2:
        return  # the mean is the class
    is_named = len(columns) <= _MOST_CLASSES_IN_LEGEND
    for index, column in enumerate(columns):
        name = column.removeprefix("dice_") if is_named else ""
        _line(axes, rows, column, name, f"C{index % 10}" if is_named else "#BBBBBB", width=0.6)


def _line(axes: Axes, rows: Sequence[dict[str, Any]], column: str, name: str, color: str, *, width: float) -> None:
    marker = "o" if len(rows) == 1 else None  # a line through one point is nothing to see
    values = [row[column] for row in rows]
    label = name or f"_{column}"  # a leading underscore keeps it out of the legend
    axes.plot([row["epoch"] for row in rows], values, color=color, linewidth=width, marker=marker, label=label)
