"""Trained models on disk: which folder holds the one that was asked for, and what is in it. Imports no torch.

A model folder is nnU-Net's ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`` with ``plans.json``,
``dataset.json`` and ``fold_X/checkpoint_final.pth``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.composition.checks import did_you_mean
from nnplug.datasets import channel_names, nearest_dataset
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json

Fold = int | str
_DATASET = re.compile(r"Dataset(\d{3,})_.+")


@dataclass(frozen=True)
class ModelFolder:
    """A model folder and its two JSON files.

    Attributes:
        path: the folder.
        plans: ``plans.json``.
        dataset_json: ``dataset.json``.
    """

    path: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @property
    def file_ending(self) -> str:
        """Ending of the model's images, for example ``.nii.gz``."""
        return self.dataset_json["file_ending"]

    @property
    def channel_names(self) -> list[str]:
        """Names of the input channels in their order."""
        return channel_names(self.dataset_json)

    def previous_stage(self, configuration: str) -> str | None:
        """The configuration whose predictions a cascade's configuration takes as input, None elsewhere."""
        seen: set[str] = set()
        while configuration in self.plans["configurations"] and configuration not in seen:
            seen.add(configuration)
            settings = self.plans["configurations"][configuration]
            if "previous_stage" in settings:
                return settings["previous_stage"]
            configuration = settings.get("inherits_from", "")
        return None


# --- one folder ------------------------------------------------------------------------------------------------------


def read_model_folder(path: Path) -> ModelFolder:
    """Read ``plans.json`` and ``dataset.json``.

    Raises:
        NnplugError: no such folder, no model folder, damaged JSON.
    """
    path = Path(path)
    if not path.is_dir():
        raise NnplugError(f"There is no model folder {path}.")
    missing = [name for name in ("plans.json", "dataset.json") if not (path / name).is_file()]
    if missing and (path.parent / "plans.json").is_file() and path.name.startswith("fold_"):
        raise NnplugError(
            f"{path} is one fold of a model. Give its parent folder, and the fold with -f {path.name[5:]}."
        )
    if missing:
        raise NnplugError(f"{path} is no model folder: it has no {' and no '.join(missing)}.")
    model = ModelFolder(
        path,
        read_required_json(path / "plans.json", "The plans file"),
        read_required_json(path / "dataset.json", "The data set's description"),
    )
    check_keys(path / "plans.json", model.plans, "configurations", "image_reader_writer")
    check_keys(path / "dataset.json", model.dataset_json, "labels", "file_ending")
    if not ("channel_names" in model.dataset_json or "modality" in model.dataset_json):
        raise NnplugError(f"{path / 'dataset.json'} is not complete: it has no channel_names.")
    return model


def check_keys(path: Path, content: Any, *keys: str) -> None:
    """Raise a NnplugError where ``content``, which was read from ``path``, is no JSON object with these keys."""
    if not isinstance(content, dict):
        raise NnplugError(f"{path} is not complete: expected a JSON object.")
    missing = [key for key in keys if key not in content]
    if missing:
        raise NnplugError(f"{path} is not complete: it has no {' and no '.join(missing)}.")


# --- folds -----------------------------------------------------------------------------------------------------------


def choose_folds(
    model_folder: Path, folds: Fold | Sequence[Fold] | None = None, checkpoint_name: str = "checkpoint_final.pth"
) -> list[Fold]:
    """The folds to predict with, in nnU-Net's spelling: numbers and ``"all"``.

    Args:
        model_folder: the folder with the ``fold_X`` folders.
        folds: None or ``"all"`` takes ``fold_all`` where it alone exists and the folds of the cross-validation where
            they alone exist; numbers are taken as they are; ``"fold_all"`` is the model trained on every case.
        checkpoint_name: file that each fold must have.

    Raises:
        NnplugError: both kinds exist and it is not said which, a fold or its checkpoint is missing, nothing is there.
    """
    has_checkpoint = _fold_folders(model_folder, checkpoint_name)
    wanted = _parse_folds(folds)
    if wanted is not None:
        missing = [fold for fold in wanted if not has_checkpoint.get(fold)]
        if missing:
            names = ", ".join(f"fold_{fold}" for fold in missing)
            is_there = any(fold in has_checkpoint for fold in missing)
            advice = " Another checkpoint is chosen with -chk." if is_there else ""
            raise NnplugError(
                f"{model_folder} has no {checkpoint_name} for {names}. {_what_exists(model_folder)}{advice}"
            )
        return wanted
    ready = [fold for fold, is_there in has_checkpoint.items() if is_there]
    numbered: list[Fold] = [fold for fold in ready if fold != "all"]
    if not ready:
        raise NnplugError(
            f"{model_folder} has no fold with {checkpoint_name}. {_what_exists(model_folder)} "
            "Another checkpoint is chosen with -chk."
        )
    if "all" in ready and numbered:
        numbers = " ".join(map(str, numbered))
        raise NnplugError(
            f"{model_folder} holds a model trained on every case (fold_all) and folds of a cross-validation. "
            f"Say which: -f fold_all, or -f {numbers}"
        )
    return numbered or ["all"]


def unfinished_folds(model_folder: Path, checkpoint_name: str = "checkpoint_final.pth") -> list[Fold]:
    """Folds whose folder is there and whose checkpoint is not."""
    return [fold for fold, is_there in _fold_folders(model_folder, checkpoint_name).items() if not is_there]


def _fold_folders(model_folder: Path, checkpoint_name: str) -> dict[Fold, bool]:
    found: dict[Fold, bool] = {}
    for path in model_folder.glob("fold_*"):
        name = path.name.removeprefix("fold_")
        if path.is_dir() and (name == "all" or name.isdecimal()):
            found[int(name) if name.isdecimal() else name] = (path / checkpoint_name).is_file()
    return dict(sorted(found.items(), key=lambda item: (item[0] == "all", str(item[0]).zfill(4))))


def _parse_folds(folds: Fold | Sequence[Fold] | None) -> list[Fold] | None:
    if folds is None:
        return None
    values = [folds] if isinstance(folds, int | str) else list(folds)
    if [str(value) for value in values] == ["all"]:
        return None
    parsed: list[Fold] = []
    for value in values:
        name = str(value).removeprefix("fold_")
        if not (name == "all" or name.isdecimal()) or str(value) == "all":
            raise NnplugError(f"Fold '{value}' is not one: expected numbers such as 0 1 2, fold_all, or all alone.")
        fold: Fold = int(name) if name.isdecimal() else name
        if fold not in parsed:
            parsed.append(fold)
    if not parsed:
        raise NnplugError("No fold was given: expected numbers such as 0 1 2, fold_all, or all alone.")
    return parsed


def _what_exists(model_folder: Path) -> str:
    """One sentence with the checkpoints of every fold."""
    folds = [f"fold_{fold}" for fold in _fold_folders(model_folder, "")]
    if not folds:
        return "It has no folds: was the model trained?"
    contents = []
    for name in folds:
        checkpoints = sorted(path.name for path in (model_folder / name).glob("*.pth"))
        contents.append(f"{name} has {', '.join(checkpoints) or 'no checkpoint'}")
    more = f"; and {len(contents) - 5} more" if len(contents) > 5 else ""
    return f"There: {'; '.join(contents[:5])}{more}."


# --- finding ---------------------------------------------------------------------------------------------------------


def find_model_folder(
    dataset: str,
    configuration: str,
    *,
    trainer: str | None = None,
    plans: str = "nnUNetPlans",
    results: Path | None = None,
    trust_code: bool = False,
) -> Path:
    """The folder of a trained model.

    Args:
        dataset: number or name.
        configuration: nnU-Net's, for example ``3d_fullres``.
        trainer: its name with the terms in any order, or None where only one was trained.
        plans: plans identifier.
        results: folder of trained models; ``nnUNet_results`` by default.
        trust_code: as in :func:`nnplug.resolve`, for a trainer that is a recipe file.

    Raises:
        NnplugError: unknown data set, no such model, several and none named.
    """
    dataset_folder = find_dataset_folder(dataset, results)
    models = list_models(dataset_folder)
    trainers = [names[0] for names in models if names[1:] == (plans, configuration)]
    if not trainers:
        trained = ", ".join("__".join(names) for names in models) or "nothing"
        near = did_you_mean(configuration, {names[2] for names in models if names[1] == plans}, cutoff=0.8)
        raise NnplugError(
            f"{dataset_folder.name} has no model of configuration '{configuration}' with plans '{plans}' in "
            f"{dataset_folder.parent}{near}. It has: {trained}."
        )
    if trainer is None and len(trainers) > 1:
        raise NnplugError(
            f"{dataset_folder.name} has models of {len(trainers)} trainers for configuration '{configuration}'. "
            f"Say which with -tr: {', '.join(trainers)}."
        )
    name = trainers[0] if trainer is None else _match_trainer(trainer, trainers, trust_code)
    return dataset_folder / f"{name}__{plans}__{configuration}"


def find_dataset_folder(dataset: str, results: Path | None = None) -> Path:
    """The folder of a data set under ``nnUNet_results``; same errors as :func:`find_model_folder`."""
    if results is None:
        if not os.environ.get("nnUNet_results"):
            raise NnplugError(
                "nnUNet_results is not set: it names the folder with the trained models. Set it (export "
                "nnUNet_results=FOLDER), name it with --results-dir FOLDER, or predict with the model's own folder: "
                "nnplug predict_from_modelfolder -m FOLDER"
            )
        results = Path(os.environ["nnUNet_results"])
    if not results.is_dir():
        raise NnplugError(f"nnUNet_results is {results}, which is not a folder.")
    there = {path.name: path for path in sorted(results.iterdir()) if path.is_dir() and _DATASET.fullmatch(path.name)}
    if dataset in there:
        return there[dataset]
    number = int(dataset) if dataset.isdecimal() else None
    matches = [path for name, path in there.items() if int(_DATASET.fullmatch(name)[1]) == number]  # type: ignore[index]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(path.name for path in matches)
        raise NnplugError(f"Dataset {dataset} is not unique in {results}: {names}. Give the name.")
    shown = ", ".join(list(there)[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
    near = nearest_dataset(dataset, there)
    raise NnplugError(
        f"There is no trained model of dataset '{dataset}' in {results}{near}. It has: {shown or 'none'}."
    )


def list_models(dataset_folder: Path) -> list[tuple[str, str, str]]:
    """(trainer, plans, configuration) of every model folder."""
    found = []
    for path in sorted(dataset_folder.iterdir()):
        names = path.name.split("__")
        if len(names) == 3 and (path / "plans.json").is_file():
            found.append((names[0], names[1], names[2]))
    return found


def _match_trainer(typed: str, trainers: list[str], trust_code: bool) -> str:
    if typed in trainers:
        return typed
    from nnplug.discovery.registry import get_registry

    error: NnplugError | None = None
    try:
        canonical = get_registry().resolve(typed, trust_code=trust_code).name
        if canonical in trainers:
            return canonical
    except NnplugError as failed:  # a recipe file or a plugin that is no longer there: the folder may still be
        error = failed
    same_terms = [name for name in trainers if sorted(name.split("+")) == sorted(typed.split("+"))]
    if len(same_terms) == 1:
        return same_terms[0]
    trained = f"Trained for this dataset, configuration and plans: {', '.join(trainers)}."
    if error is not None:
        raise NnplugError(f"{error} {trained}") from error
    raise NnplugError(f"There is no model of trainer '{typed}'. {trained}")
