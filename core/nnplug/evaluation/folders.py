"""Which files an evaluation compares, and whether they fit together. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnplug.errors import NnplugError
from nnplug.files.json_files import read_json
from nnplug.image_headers import (
    ROUNDED_SPACING_TOLERANCE,
    ImageHeader,
    UnreadableImageError,
    geometry_differences,
    read_header,
)
from nnplug.models.trained_models import read_model_folder
from nnplug.problems import Problem, raise_problems

Pairs = dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class Folders:
    """What is compared with what.

    Attributes:
        truth, predictions: folders.
        descriptions: folder with nnU-Net's dataset.json and plans.json.
        cases: that have to be there; None for every case of the truth.
    """

    truth: Path
    predictions: Path
    descriptions: Path
    cases: tuple[str, ...] | None = None


def find_folders(truth: Path, predictions: Path) -> Folders:
    for folder, what in ((truth, "the truth"), (predictions, "predictions")):
        if not folder.is_dir():
            raise NnplugError(f"There is no folder {folder}, which should hold {what}.")
    return Folders(truth, predictions, predictions)


def find_fold(fold: Path) -> Folders:
    """The validation of a fold: nnU-Net's truth is that of the preprocessed data set, or else of the raw one."""
    fold = fold.absolute()
    if not (fold.name.startswith("fold_") and (fold / "validation").is_dir()):
        raise NnplugError(
            f"{fold} is no fold with a validation folder. Give the folder of a trained fold, MODEL/fold_0, or two "
            "folders: the truth's and the predictions'."
        )
    model = read_model_folder(fold.parent)
    dataset = model.plans.get("dataset_name", fold.parent.parent.name)
    places = [
        Path(os.environ[variable], dataset, folder)
        for variable, folder in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr"))
        if os.environ.get(variable)
    ]
    truth = next((place for place in places if place.is_dir()), None)
    if truth is None:
        looked = " or ".join(map(str, places)) or "nowhere, as neither variable is set"
        raise NnplugError(
            f"The truth of {dataset} is in nnUNet_preprocessed (gt_segmentations) or nnUNet_raw (labelsTr); looked in "
            f"{looked}. Set one of them, name an inventory's cache with --cache-dir, or give the folder of the "
            f"truth in front of {fold / 'validation'}."
        )
    # the splits may be others by now; stock nnU-Net leaves no record, and what it has validated is taken
    record = read_json(fold / "nnplug_fold.json") or {}
    cases = tuple(record.get("val", ()))
    return Folders(truth, fold / "validation", fold.parent, cases)


def _list(folder: Path, ending: str) -> list[Path]:
    # what is hidden is being written
    return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith("."))


def find_pairs(folders: Folders, ending: str, allow_missing: bool) -> Pairs:
    truth, predicted = (
        {path.name.removesuffix(ending): path for path in _list(folder, ending)}
        for folder in (folders.truth, folders.predictions)
    )
    if not predicted:
        raise NnplugError(f"{folders.predictions} has no '{ending}' file, the file_ending of dataset.json.")
    problems = [
        Problem(
            f"there is no truth for this prediction in {folders.truth}",
            "Remove it, or add its truth.",
            case,
            predicted[case],
        )
        for case in sorted(predicted.keys() - truth.keys())
    ]
    missing = sorted(set(truth if folders.cases is None else folders.cases) - predicted.keys())
    if not allow_missing:
        advice = "Predict it, or leave out what is missing with --chill."
        problems += [Problem("it has no prediction", advice, case) for case in missing]
    raise_problems(folders.predictions, problems)
    return {case: (truth[case], predicted[case]) for case in sorted(predicted)}


def geometry_problems(pairs: Pairs, reader: str) -> list[Problem]:
    problems = []
    for case, files in pairs.items():
        headers: list[ImageHeader | None] = []
        for path in files:
            try:
                headers.append(read_header(path, reader))
            except UnreadableImageError as error:
                problems.append(Problem(f"it can not be read: {error}", "Mend or replace it.", case, path))
        truth, predicted = headers if len(headers) == 2 else (None, None)
        if truth is not None and predicted is not None:
            advice = "Compare images of one grid: resample the prediction to the truth, or predict again."
            problems += [Problem(found, advice, case, files[1]) for found in _differences(truth, predicted)]
    return problems


def _differences(truth: ImageHeader, predicted: ImageHeader) -> list[str]:
    """What differs by more than writing and reading an image may change."""
    if truth.size != predicted.size:
        return [f"it has {_shown(predicted.size)} voxels, the truth has {_shown(truth.size)}"]
    different = geometry_differences(predicted, truth, ROUNDED_SPACING_TOLERANCE)
    return [f"its {what} is {_shown(here)}, the truth's {_shown(there)}" for what, (here, there) in different.items()]


def _shown(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)
