"""What the demo shows at its end: a table and a picture that put the trainers side by side.

Arrays are (Z, Y, X) as nnU-Net's readers give them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nnplug.demo.held_out import HeldOutCase

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#f0e442")
MAX_CASES_IN_PICTURE = 2


class Model:
    """What a model folder says of its data: names and values of the labels, and how images are read."""

    def __init__(self, folder: Path) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        plans = PlansManager(str(folder / "plans.json"))
        self.reader = plans.image_reader_writer_class()
        self.ignore_label = plans.get_label_manager(self.dataset_json).ignore_label
        self.file_ending = self.dataset_json["file_ending"]
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.dataset_json["labels"].items()}
        self.labels = {k: v for k, v in values.items() if k not in ("background", "ignore")}


def mean_dice(model_folder: Path, predictions: Path, cases: Sequence[HeldOutCase]) -> dict[str, float | None]:
    """Mean Dice (0 to 1) over the cases for each label or region; None for one that is in no case."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    model = Model(model_folder)
    values: dict[str, list[float]] = {name: [] for name in model.labels}
    for case in cases:
        prediction = str(predictions / f"{case.name}{model.file_ending}")
        metrics = compute_metrics(
            str(case.truth), prediction, model.reader, list(model.labels.values()), model.ignore_label
        )["metrics"]
        for name, label in model.labels.items():
            values[name].append(float(metrics[label]["Dice"]))
    return {name: mean_of_known(numbers) for name, numbers in values.items()}


def mean_of_known(values: Sequence[float]) -> float | None:
    """Mean without NaN, None where nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a trainer: held-out Dice of each label, validation Dice, parameters, training time.

    Args:
        rows: ``label``, ``dice`` (by label), ``validation_dice``, ``num_parameters``, ``training_seconds``.
    """
    table = Table(box=SIMPLE)
    table.add_column("-tr")
    for label in rows[0]["dice"]:
        table.add_column(f"Dice {label}", justify="right")
    for heading in ("validation Dice", "parameters", "training"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["label"],
            *(_dice_text(value) for value in row["dice"].values()),
            _dice_text(row["validation_dice"]),
            f"{row['num_parameters'] / 1e6:.2f} M",
            f"{row['training_seconds']:.0f} s",
        )
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _dice_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw_picture(
    path: Path, model_folder: Path, cases: Sequence[HeldOutCase], predictions: Mapping[str, Path], note: str
) -> None:
    """Image, truth and each trainer's prediction for the slice of a case that holds most foreground, as PNG.

    Args:
        path: the picture.
        model_folder: of any of the models; it knows the labels and the image format.
        cases: the first ones are drawn.
        predictions: folder of predicted segmentations by the trainer's label.
        note: line below the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    model = Model(model_folder)
    shown = cases[:MAX_CASES_IN_PICTURE]
    titles = ["image", "truth", *predictions]
    figure = Figure(figsize=(2.5 * len(titles), 2.6 * len(shown) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for row, case in zip(axes, shown, strict=True):
        image, properties = model.reader.read_images([str(file) for file in case.images])
        files = [case.truth, *(folder / f"{case.name}{model.file_ending}" for folder in predictions.values())]
        segmentations = [model.reader.read_seg(str(file))[0][0] for file in files]
        index = int(np.argmax((segmentations[0] > 0).sum(axis=(1, 2))))
        aspect = properties["spacing"][1] / properties["spacing"][2]
        for axis, segmentation in zip(row, [None, *segmentations], strict=True):
            axis.imshow(image[0, index], cmap="gray", aspect=aspect)
            if segmentation is not None:
                axis.imshow(_overlay(segmentation[index], model.labels), aspect=aspect, interpolation="nearest")
            axis.set_axis_off()
    names = [Patch(color=colour, label=name) for name, colour in zip(model.labels, COLOURS, strict=False)]
    figure.legend(handles=names, loc="outside lower center", ncols=len(names), fontsize=9, title=note, title_fontsize=8)
    figure.savefig(path, dpi=110)


def _overlay(segmentation: np.ndarray, labels: Mapping[str, int | tuple[int, ...]]) -> np.ndarray:
    """Transparent colours (Y, X, 4) of the labels; a later region lies on top of an earlier one."""
    from matplotlib.colors import to_rgba

    overlay = np.zeros((*segmentation.shape, 4))
    for label, colour in zip(labels.values(), COLOURS, strict=False):
        overlay[np.isin(segmentation, label)] = to_rgba(colour, 0.55)
    return overlay
