"""Made-up data sets, planned and preprocessed by nnU-Net's own code: what the checks build, train and predict on.

They lie in a temporary folder of the process and are made when first needed. The images are 3D; ``2d`` is nnU-Net's
configuration for their slices.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.testing.plan_cases import CASES, PlanCase

LABELS: dict[str, Any] = {"background": 0, "ball": 1, "box": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "box": [2]}
IGNORE_LABEL = 3


@dataclass(frozen=True)
class MadeUpDataset:
    """A planned data set on disk.

    Attributes:
        root: holds nnU-Net's folders.
        name: ``DatasetXXX_Name``.
        plans, dataset_json: as nnU-Net wrote them.
    """

    root: Path
    name: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @property
    def raw_folder(self) -> Path:
        return self.root / "raw" / self.name

    @property
    def preprocessed_folder(self) -> Path:
        return self.root / "preprocessed" / self.name


@cache
def root_folder() -> Path:
    """A folder of this process, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="nnplug-check-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def activated(results: Path) -> Iterator[None]:
    """Set nnU-Net's variables for a ``with`` block; whatever else the user has set of them does not count."""
    before = {name: value for name, value in os.environ.items() if name.startswith("nnUNet_")}
    root = root_folder()
    during = {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(root / "preprocessed"),
        "nnUNet_results": str(results),
        "nnUNet_n_proc_DA": "0",  # batches in this process
        "nnUNet_compile": "0",
        "nnUNet_def_n_proc": "1",
    }
    kept = {name: value for name, value in before.items() if name == "nnUNet_extTrainer"}
    _replace_variables({**kept, **during})
    try:
        yield
    finally:
        _replace_variables(before)


def _replace_variables(variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("nnUNet_")]:
        del os.environ[name]
    os.environ.update(variables)


@cache
def made_up_dataset(case: PlanCase) -> MadeUpDataset:
    """The data set of a plan, made now if it was not yet; in an :func:`activated` block.

    Every case has a ball (label 1) and a box (label 2) that networks could tell by their brightness. Two cases are for
    training in fold 0 and one for validation.
    """
    root = root_folder()
    dataset = _planned(root, case)
    _preprocess(dataset, case.configuration)
    return dataset


def _planned(root: Path, case: PlanCase) -> MadeUpDataset:
    raw = root / "raw" / case.dataset_name
    preprocessed = root / "preprocessed" / case.dataset_name
    if not preprocessed.is_dir():
        dataset_json = _dataset_json(case)
        _write_raw(raw, case, dataset_json)
        preprocessed.mkdir(parents=True)
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(_fingerprint(case)))
        splits = [{"train": list(CASES[:-1]), "val": list(CASES[-1:])}]
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))
        # planning takes the number of augmentation processes for torch's number of threads, which can not be 0
        os.environ["nnUNet_n_proc_DA"] = "1"
        try:
            planner = ExperimentPlanner(case.dataset_name)
            planner.UNet_base_num_features = min(32, case.max_features // 4)
            planner.UNet_max_features_2d = planner.UNet_max_features_3d = case.max_features
            planner.plan_experiment()
        finally:
            os.environ["nnUNet_n_proc_DA"] = "0"
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    return MadeUpDataset(root, case.dataset_name, plans, json.loads((preprocessed / "dataset.json").read_text()))


def _dataset_json(case: PlanCase) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {str(channel): "MRI" for channel in range(case.num_channels)},
        "labels": dict(REGIONS if case.has_regions else LABELS),
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    if case.has_ignore_label:
        content["labels"]["ignore"] = IGNORE_LABEL
    if case.has_regions:
        content["regions_class_order"] = [1, 2]
    return content


def _write_raw(folder: Path, case: PlanCase, dataset_json: dict[str, Any]) -> None:
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for index, name in enumerate(CASES):
        rng = np.random.default_rng(index)
        labels = made_up_labels(case.shape, rng)
        for channel in range(case.num_channels):
            image = rng.normal(100, 10, case.shape) + 60 * (labels == 1) + 120 * (labels == 2)
            _write_image(image.astype(np.float32), case, folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        if case.has_ignore_label:
            labels[rng.random(case.shape) < 0.5] = IGNORE_LABEL
        _write_image(labels, case, folder / "labelsTr" / f"{name}.nii.gz")


def made_up_labels(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Label map (uint8) with a ball of label 1 in its first half and a box of label 2 in its second half, per axis."""
    labels = np.zeros(shape, np.uint8)
    size = np.array(shape)
    centre = size * rng.uniform(0.25, 0.35, len(shape))
    distance = sum(((axis - c) / s) ** 2 for axis, c, s in zip(np.indices(shape), centre, size, strict=True))
    labels[distance < 0.2**2] = 1
    start = (size * rng.uniform(0.55, 0.65, len(shape))).astype(int)
    labels[tuple(slice(a, a + max(2, s // 5)) for a, s in zip(start, shape, strict=True))] = 2
    return labels


def _write_image(array: np.ndarray, case: PlanCase, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(case.spacing_mm[::-1])
    sitk.WriteImage(image, str(path))


def _fingerprint(case: PlanCase) -> dict[str, Any]:
    intensities = {
        "max": 260.0,
        "mean": 180.0,
        "median": 170.0,
        "min": 130.0,
        "percentile_00_5": 135.0,
        "percentile_99_5": 250.0,
        "std": 30.0,
    }
    return {
        "spacings": [case.spacing_mm] * len(CASES),
        "shapes_after_crop": [case.shape] * len(CASES),
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(case.num_channels)},
        "median_relative_size_after_cropping": 1.0,
    }


def _preprocess(dataset: MadeUpDataset, configuration: str) -> None:
    manager = PlansManager(dataset.plans)
    settings = manager.get_configuration(configuration)
    folder = dataset.preprocessed_folder / settings.data_identifier
    folder.mkdir()
    for name in CASES:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / name),
            [str(path) for path in sorted((dataset.raw_folder / "imagesTr").glob(f"{name}_*"))],
            str(dataset.raw_folder / "labelsTr" / f"{name}.nii.gz"),
            manager,
            settings,
            dataset.dataset_json,
        )
