"""The result of an evaluation as tables: CSV for programs, a short one for a terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from nnplug.console import table_console
from nnplug.files.json_files import as_plain_json

_SHOWN = ("Dice", "IoU", "surface_dice", "HD95_mm", "PQ", "instance_F1", "instances_ref", "instances_pred")


def csv_text(result: dict[str, Any], cases: Iterable[str]) -> str:
    """A row for each case and class, then the means; a value that is not defined is empty."""
    classes = result["settings"]["classes"]
    columns = list(result["foreground_mean"])
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["case", "label", "class", *columns])
    rows = [
        (case, key, classes[key], values)
        for case, entry in zip(cases, result["metric_per_case"], strict=True)
        for key, values in entry["metrics"].items()
    ]
    rows += [("mean", key, classes[key], values) for key, values in result["mean"].items()]
    rows.append(("mean", "", "foreground", result["foreground_mean"]))
    for case, key, name, values in rows:
        writer.writerow([case, key, name, *as_plain_json([values[column] for column in columns], nan_as_null=True)])
    return file.getvalue()


def print_means(result: dict[str, Any]) -> None:
    """The means of each class on standard output."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    columns = [name for name in _SHOWN if name in result["foreground_mean"]]
    table.add_column("class")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    rows = [(result["settings"]["classes"][key], values) for key, values in result["mean"].items()]
    for name, values in [*rows, ("mean", result["foreground_mean"])]:
        table.add_row(name, *("-" if math.isnan(values[c]) else f"{values[c]:.4f}" for c in columns))
    table_console().print(table)


def undefined_distances(result: dict[str, Any]) -> dict[str, int]:
    """For each class the number of cases that only one of truth and prediction has: they have no HD95."""
    counts = {}
    for key, name in result["settings"]["classes"].items():
        values = [case["metrics"][key] for case in result["metric_per_case"]]
        counts[name] = sum(math.isnan(one.get("HD95_mm", 0.0)) and not math.isnan(one["Dice"]) for one in values)
    return {name: number for name, number in counts.items() if number}
