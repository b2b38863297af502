"""Evaluate a folder of predictions, or the validation of a trained fold. Imports torch only where it measures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnplug.errors import NnplugError
from nnplug.evaluation.folders import Pairs, find_fold, find_folders, find_pairs, geometry_problems
from nnplug.evaluation.tables import csv_text
from nnplug.files.atomic_file import replace_file
from nnplug.files.json_files import as_plain_json, write_json
from nnplug.image_headers import read_header
from nnplug.models.descriptions import Descriptions, find_description, read_descriptions
from nnplug.problems import Problem, raise_problems
from nnplug.processes.case_pool import Pool, choose_num_processes

if TYPE_CHECKING:
    from nnplug.evaluation.measures import MeasureSettings

_PRELOAD = ("nnplug.evaluation.measures",)


def evaluate(
    truth: str | os.PathLike[str],
    predictions: str | os.PathLike[str] | None = None,
    *,
    dataset_json: str | os.PathLike[str] | None = None,
    plans: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    tolerance_mm: float = 1.0,
    surfaces: bool = True,
    instances: bool = False,
    allow_missing: bool = False,
    num_processes: int | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Compare predictions with the truth, for each case and class.

    Args:
        truth: folder of segmentations; without ``predictions``, the folder of a trained fold (``MODEL/fold_0``).
        predictions: folder of segmentations with the same names.
        dataset_json, plans: nnU-Net's files; by default those beside the predictions. The plans only tell how files are
            read: where there are none, as nnU-Net reads them by their ending.
        output: where the result is written too, as JSON in the form of nnU-Net's ``summary.json``.
        csv: where it is written as a table, one row for a case and class.
        tolerance_mm: distance up to which surfaces agree, 0 or more.
        surfaces: measure surface Dice and the 95th percentile of the Hausdorff distance.
        instances: compare connected components too.
        allow_missing: leave out cases that have no prediction.
        num_processes: worker processes, 0 for none; by default up to 8, none for one or two cases.
        progress_bar: show one where there is a terminal.

    Returns:
        nnU-Net's summary: ``metric_per_case``, ``mean`` for each class, ``foreground_mean``; and ``settings``.
        Values are 0 to 1, distances in mm, NaN where a class is in neither image.

    Raises:
        NnplugError: no such folder or file; a case without prediction or truth; images that can not be read, whose
            geometry differs, or that hold other values than the labels. Every problem is listed.
    """
    if not 0 <= tolerance_mm < float("inf"):
        raise NnplugError(f"The tolerance is {tolerance_mm}: expected a distance in mm, 0 or more.")
    folders = find_fold(Path(truth)) if predictions is None else find_folders(Path(truth), Path(predictions))
    _check_writable(output, csv)
    beside = folders.descriptions / "plans.json"
    descriptions = read_descriptions(
        Path(dataset_json or find_description("dataset.json", [folders.descriptions], "Name it with -djfile FILE.")),
        Path(plans) if plans is not None else beside if beside.is_file() else None,
    )
    pairs = find_pairs(folders, descriptions.file_ending, allow_missing)
    settings = _settings(descriptions, tolerance_mm if surfaces else None, instances)
    raise_problems(folders.predictions, geometry_problems(pairs, settings.reader.__name__))
    number = choose_num_processes(num_processes, 0 if len(pairs) < 3 else 8, len(pairs))
    cases = _measure(pairs, settings, Pool(number, progress_bar=progress_bar, preload=_PRELOAD), folders.predictions)
    result = summarise(cases)
    result["settings"] = {
        "classes": _class_names(descriptions.dataset_json["labels"], result["mean"]),
        "tolerance_mm": settings.tolerance_mm,
        "tolerance_voxels": _in_voxels(settings.tolerance_mm, pairs, settings.reader.__name__),
        "instances": instances,
    }
    if output is not None:
        write_json(Path(output), result)
    if csv is not None:
        replace_file(Path(csv), lambda file: file.write(csv_text(result, pairs).encode()))
    return result


def _check_writable(*files: str | os.PathLike[str] | None) -> None:
    """Measuring may take hours."""
    for path in [Path(file) for file in files if file is not None]:
        if path.is_dir():
            raise NnplugError(f"{path} is a folder. Name the file to write, for example {path / 'result'}.")
        if not path.parent.is_dir():
            raise NnplugError(f"{path} can not be written: there is no folder {path.parent}. Make it first.")


def _in_voxels(tolerance_mm: float | None, pairs: Pairs, reader: str) -> float | None:
    """The tolerance by the largest spacing of the first case."""
    header = read_header(next(iter(pairs.values()))[0], reader)
    if tolerance_mm is None or header is None or not header.spacing_mm:
        return None
    return float(f"{tolerance_mm / max(header.spacing_mm):.4g}")


def _settings(descriptions: Descriptions, tolerance_mm: float | None, instances: bool) -> MeasureSettings:
    from nnplug.evaluation.measures import MeasureSettings

    labels = descriptions.labels
    return MeasureSettings(
        reader=descriptions.reader,
        classes=labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        values=[int(value) for value in labels.all_labels] + ([labels.ignore_label] if labels.has_ignore_label else []),
        ignore_label=labels.ignore_label,
        tolerance_mm=tolerance_mm,
        instances=instances,
    )


def _measure(pairs: Pairs, settings: MeasureSettings, pool: Pool, place: Path) -> list[dict[str, Any]]:
    from nnplug.evaluation.measures import measure_case

    measured: dict[str, dict[str, Any]] = {}
    failures = pool.run(measure_case, settings, pairs, "evaluating", measured.__setitem__)
    advice = "Mend the files, or leave out the case."
    raise_problems(place, [Problem(why, advice, case) for case, why in sorted(failures.items())])
    return [measured[case] for case in pairs]


def summarise(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """nnU-Net's summary of the cases: the mean of a class leaves out cases without a value (NaN)."""
    classes = list(cases[0]["metrics"])
    names = list(cases[0]["metrics"][classes[0]])
    mean = {one: {name: _mean(case["metrics"][one][name] for case in cases) for name in names} for one in classes}
    with np.errstate(invalid="ignore"):
        foreground = {name: float(np.mean([mean[one][name] for one in classes])) for name in names}
    summary = {"foreground_mean": foreground, "mean": mean, "metric_per_case": list(cases)}
    return as_plain_json(summary)


def _mean(values: Iterable[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no case has the class
        return float(np.nanmean(list(values)))


def _class_names(labels: dict[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """The names in dataset.json of nnU-Net's keys: ``1``, or ``(1, 2)`` for a region."""
    names = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
    names |= {str(value[0]): name for name, value in labels.items() if isinstance(value, list) and len(value) == 1}
    return {key: names.get(key, key) for key in keys}
