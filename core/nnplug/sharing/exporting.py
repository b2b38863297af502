"""Trained models into a zip file that ``nnUNetv2_install_pretrained_model_from_zip`` takes too.

What nnU-Net exports is in it, and ``nnplug.json`` and the requirements beside ``plans.json``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file
from nnplug.models.model_folder import MANIFEST_NAME
from nnplug.models.trained_models import (
    Fold,
    ModelFolder,
    choose_folds,
    find_dataset_folder,
    find_model_folder,
    list_models,
    read_model_folder,
)
from nnplug.sharing.requirements import FILE_NAME, requirements_text

_RESULT_FILES = ("summary.json", "postprocessing.pkl", "postprocessing.json")
_COMPRESSED = {".pth", ".gz", ".png", ".pdf", ".npz"}


@dataclass(frozen=True)
class ExportedModel:
    """One model in the file.

    Attributes:
        model: its folder.
        folds: those that are in the file.
        left_out: what was asked for and is not there; empty if ``strict``.
        first_stage: for a cascade, the configuration that is not in the file and has to be predicted first.
    """

    model: ModelFolder
    folds: tuple[Fold, ...]
    left_out: tuple[str, ...] = ()
    first_stage: str | None = None


def export_models(
    dataset: str,
    output: Path,
    *,
    configurations: Sequence[str] | None = None,
    trainer: str | None = None,
    plans: str = "nnUNetPlans",
    folds: Sequence[Fold] | None = None,
    checkpoints: Sequence[str] = ("checkpoint_final.pth",),
    strict: bool = True,
    crossval_predictions: bool = False,
    results: Path | None = None,
) -> list[ExportedModel]:
    """Write models of one trainer into a zip file, which is replaced whole.

    Args:
        dataset: id or name.
        output: the file.
        configurations: None takes every one that was trained.
        trainer: its terms in any order; None where only one was trained.
        plans: plans identifier.
        folds: as in :func:`nnplug.models.trained_models.choose_folds`.
        checkpoints: files of each fold; the first one decides which folds are there.
        strict: False leaves out configurations, folds and checkpoints that are missing.
        crossval_predictions: also the predictions of the cross-validation.
        results: folder of trained models; ``nnUNet_results`` by default.

    Raises:
        NnplugError: no such model, fold or checkpoint; the file can not be written.
    """
    dataset_folder = find_dataset_folder(dataset, results)
    trained = [names for names in list_models(dataset_folder) if names[1] == plans]
    if trainer is None and len({names[0] for names in trained}) > 1:
        listed = ", ".join(dict.fromkeys(names[0] for names in trained))
        raise NnplugError(f"{dataset_folder.name} has models of several trainers. Say which with -tr: {listed}.")
    models, missing = [], []
    for configuration in configurations or dict.fromkeys(names[2] for names in trained):
        try:
            path = find_model_folder(dataset, configuration, trainer=trainer, plans=plans, results=results)
        except NnplugError as error:
            if strict and configurations:
                raise
            missing.append(error)
            continue
        models.append(_choose(read_model_folder(path), folds, checkpoints, strict))
    if not models:
        raise missing[0] if missing else NnplugError(f"{dataset_folder} has no model with plans '{plans}'.")
    exported = {one.model.path.name.split("__")[2] for one in models}
    models = [_with_first_stage(one, exported) for one in models]
    replace_file(output, lambda file: _write(file, models, checkpoints, crossval_predictions))
    return models


def _choose(
    model: ModelFolder, folds: Sequence[Fold] | None, checkpoints: Sequence[str], strict: bool
) -> ExportedModel:
    if strict or folds is None:
        chosen = choose_folds(model.path, folds, checkpoints[0])
    else:
        chosen = [fold for fold in folds if (_fold_folder(model, fold) / checkpoints[0]).is_file()]
        chosen = choose_folds(model.path, chosen or folds, checkpoints[0])
    missing = [
        f"fold_{fold}/{name}"
        for fold in chosen
        for name in checkpoints
        if not (_fold_folder(model, fold) / name).is_file()
    ]
    if missing and strict:
        raise NnplugError(f"{model.path} has no {', '.join(missing)}. Leave them out with --not_strict.")
    names = {_fold_folder(model, fold).name for fold in chosen}
    absent = [_fold_folder(model, fold).name for fold in folds or () if fold != "all"]
    left_out = [name for name in absent if name not in names]
    return ExportedModel(model, tuple(chosen), (*left_out, *missing))


def _fold_folder(model: ModelFolder, fold: Fold) -> Path:
    return model.path / f"fold_{str(fold).removeprefix('fold_')}"


def _with_first_stage(one: ExportedModel, exported: set[str]) -> ExportedModel:
    first = one.model.previous_stage(one.model.path.name.split("__")[2])
    if first is None or first in exported:
        return one
    return ExportedModel(one.model, one.folds, one.left_out, first)


# --- the file --------------------------------------------------------------------------------------------------------


def _write(
    file: IO[bytes], models: Sequence[ExportedModel], checkpoints: Sequence[str], crossval_predictions: bool
) -> None:
    dataset_folder = models[0].model.path.parent
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        paths = [path for one in models for path in _model_files(one, checkpoints, crossval_predictions)]
        paths += _ensemble_files(dataset_folder, models, crossval_predictions)
        for path in paths:
            method = zipfile.ZIP_STORED if path.suffix in _COMPRESSED else zipfile.ZIP_DEFLATED
            archive.write(path, path.relative_to(dataset_folder.parent), method)
        for one in models:
            name = (one.model.path / FILE_NAME).relative_to(dataset_folder.parent)
            archive.writestr(name.as_posix(), requirements_text(one.model))


def _model_files(one: ExportedModel, checkpoints: Sequence[str], crossval_predictions: bool) -> Iterator[Path]:
    folder = one.model.path
    yield from _existing(folder, ("plans.json", "dataset.json", "dataset_fingerprint.json", MANIFEST_NAME))
    for fold in one.folds:
        names = (*checkpoints, "debug.json", "progress.png", "network_architecture.pdf")
        yield from _existing(folder / f"fold_{fold}", names)
        yield from _results(folder / f"fold_{fold}" / "validation", crossval_predictions)
    yield from _results(folder / f"crossval_results_folds_{'_'.join(map(str, one.folds))}", crossval_predictions)


def _ensemble_files(
    dataset_folder: Path, models: Sequence[ExportedModel], crossval_predictions: bool
) -> Iterator[Path]:
    """Of the ensembles whose models are all in the file."""
    names = {one.model.path.name for one in models}
    for folder in sorted((dataset_folder / "ensembles").glob("ensemble___*")):
        if set(folder.name.split("___")[1:-1]) <= names:
            yield from _results(folder, crossval_predictions)


def _results(folder: Path, crossval_predictions: bool) -> Iterator[Path]:
    if not crossval_predictions:
        yield from _existing(folder, _RESULT_FILES)
    elif folder.is_dir():
        # as in nnU-Net, neither probabilities nor what belongs to them
        skipped = {".npz"} if (folder / "postprocessing.pkl").is_file() else {".npz", ".pkl"}
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.suffix not in skipped:
                yield path


def _existing(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    return (folder / name for name in names if (folder / name).is_file())
