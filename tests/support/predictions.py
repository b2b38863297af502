"""Folders as prediction and validation leave them: segmentations, probabilities, properties, descriptions."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from support.models import make_dataset_json, make_plans, write_descriptions

SHAPE = (6, 10, 12)
PROPERTIES: dict[str, Any] = {
    "sitk_stuff": {
        "spacing": (1.0, 1.0, 2.5),
        "origin": (0.0, 0.0, 0.0),
        "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    },
    "spacing": [np.float64(2.5), np.float64(1.0), np.float64(1.0)],
}


def write_segmentation(path: Path, voxels: np.ndarray) -> None:
    """With the geometry of ``PROPERTIES``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing(PROPERTIES["sitk_stuff"]["spacing"])
    sitk.WriteImage(image, str(path))


def read_segmentation(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def make_truth(seed: int) -> np.ndarray:
    """Background, a block of 1 and a block of 2."""
    rng = np.random.default_rng(seed)
    voxels = np.zeros(SHAPE, np.uint8)
    start = rng.integers(1, 3, 3)
    voxels[tuple(slice(first, first + 3) for first in start)] = 1
    voxels[2:5, 6:9, 7:11] = 2
    return voxels


def write_prediction(folder: Path, case: str, truth: np.ndarray, noise: float, seed: int = 0) -> None:
    """Segmentation, probabilities and properties of a prediction that is the worse the more ``noise`` there is."""
    rng = np.random.default_rng(seed)
    logits = 4.0 * (np.arange(3)[:, None, None, None] == truth) + rng.normal(0, noise, (3, *truth.shape))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    write_segmentation(folder / f"{case}.nii.gz", probabilities.argmax(axis=0))
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities.astype(np.float16))
    (folder / f"{case}.pkl").write_bytes(pickle.dumps(PROPERTIES))


def write_predictions(folder: Path, cases: Sequence[str], noise: float) -> Path:
    """A folder as ``predict --save_probabilities`` leaves it."""
    write_descriptions(folder, make_plans(), make_dataset_json())
    for index, case in enumerate(cases):
        write_prediction(folder, case, make_truth(index), noise, seed=round(100 * noise) + index)
    return folder


def write_validated_model(model: Path, folds: Sequence[Sequence[str]], noise: float) -> Path:
    """A model folder whose folds were trained (their checkpoints are empty) and validated with ``--npz``."""
    write_descriptions(model, make_plans(), make_dataset_json())
    for number, cases in enumerate(folds):
        fold = model / f"fold_{number}"
        for index, case in enumerate(cases):
            seed = 10 * number + index
            write_prediction(fold / "validation", case, make_truth(seed), noise, seed=round(100 * noise) + seed)
        (fold / "checkpoint_final.pth").touch()
        (fold / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": {}, "mean": {}}))
    return model


def write_preprocessed(folder: Path, folds: Sequence[Sequence[str]]) -> Path:
    """What model selection takes from a preprocessed data set: plans and truth."""
    plans = make_plans()
    plans["configurations"]["2d"] = plans["configurations"]["3d_fullres"]
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    for number, cases in enumerate(folds):
        for index, case in enumerate(cases):
            write_segmentation(folder / "gt_segmentations" / f"{case}.nii.gz", make_truth(10 * number + index))
    return folder
