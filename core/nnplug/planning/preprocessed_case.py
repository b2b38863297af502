"""One preprocessed case: what a training reads of it.

Axes: C channels, D H W voxels, after the plans' ``transpose_forward``. In a 2D configuration D are the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.datasets import channel_names, check_configuration, read_plans
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json
from nnplug.image_headers import reason
from nnplug.inventory.overview import draw_case
from nnplug.problems import count, shortened

PICTURE_SIDE = 320
#: What nnU-Net writes into the label outside of the image's foreground.
OUTSIDE = -1


@dataclass(frozen=True)
class PreprocessedCase:
    """A case of a configuration.

    Attributes:
        name: of the case.
        folder: of the configuration.
        plans: as nnU-Net resolves them.
        configuration: for example ``3d_fullres``.
        dataset_json: of the data set.
        image: C D H W, normalised.
        label: D H W; ``OUTSIDE`` where nnU-Net's nonzero mask ends.
        properties: nnU-Net's, of the case.
    """

    name: str
    folder: Path
    plans: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    image: np.ndarray
    label: np.ndarray
    properties: dict[str, Any]

    @property
    def original_spacing_mm(self) -> tuple[float, ...]:
        """Of the image before preprocessing, D H W."""
        return tuple(float(self.properties["spacing"][axis]) for axis in self.plans.transpose_forward)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """D H W; in 2D the slices keep theirs."""
        target = tuple(map(float, self.plans.get_configuration(self.configuration).spacing))
        return (*self.original_spacing_mm[: 3 - len(target)], *target)


def open_case(data_folder: Path, name: str, plans_name: str, configuration: str | None = None) -> PreprocessedCase:
    """Read a case.

    Args:
        data_folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.
        name: of the case.
        plans_name: for example ``nnUNetPlans``.
        configuration: of the plans; None takes ``3d_fullres`` where it is preprocessed, else the first one that is.

    Raises:
        NnplugError: no such plans, configuration or case; it is not preprocessed; its files can not be read.
    """
    plans = PlansManager(read_plans(data_folder, plans_name))
    chosen = _choose_configuration(data_folder, plans, plans_name, configuration)
    folder = data_folder / plans.get_configuration(chosen).data_identifier
    try:
        dataset = infer_dataset_class(str(folder))(str(folder))
    except (AssertionError, KeyError) as error:
        raise NnplugError(
            f"{folder} holds files that nnU-Net did not put there, and it would not train on it either. Remove them: "
            f"it has {shortened(sorted({path.suffix for path in folder.iterdir() if path.is_file()}))} files."
        ) from error
    if name not in dataset.identifiers:
        near = get_close_matches(name, dataset.identifiers, n=3)
        meant = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
        raise NnplugError(
            f"{data_folder.name} has no preprocessed case '{name}' in {chosen}.{meant} It has "
            f"{count(len(dataset.identifiers), 'case')}: {shortened(dataset.identifiers)}."
        )
    try:
        image, label, _, properties = dataset.load_case(name)
        image, label = np.asarray(image[:]), np.asarray(label[:])[0]
    except Exception as error:  # blosc2, numpy and pickle have their own, and each means the same here
        raise NnplugError(
            f"{folder / name} can not be read: {reason(error)}. Make it anew: nnplug preprocess -d "
            f"{data_folder.name} -plans_name {plans_name} -c {chosen} --clean"
        ) from error
    dataset_json = read_required_json(data_folder / "dataset.json", "The data set's description")
    return PreprocessedCase(name, folder, plans, chosen, dataset_json, image, label, properties)


def _choose_configuration(data_folder: Path, plans: PlansManager, plans_name: str, asked: str | None) -> str:
    known = plans.available_configurations
    if asked is not None:
        check_configuration(plans.plans, asked)
    ready = [name for name in known if any((data_folder / plans.get_configuration(name).data_identifier).glob("*.pkl"))]
    if (asked or "3d_fullres") in ready:
        return asked or "3d_fullres"
    if asked is None and ready:
        return ready[0]
    raise NnplugError(
        f"{data_folder.name} has no preprocessed cases of {asked or ' or '.join(known)}. Run nnplug preprocess -d "
        f"{data_folder.name} -plans_name {plans_name} -c {asked or known[0]} first."
    )


def describe_case(case: PreprocessedCase) -> dict[str, Any]:
    """What ``nnplug inspect`` tells, as plain values; arrays' axes are D H W.

    ``channels``: mean, std, min, max of the normalised voxels. ``labels``: voxels of each label or region and their
    share of all. ``crop_box``: first and last voxel + 1 by axis, in the image before preprocessing.
    """
    manager = case.plans.get_configuration(case.configuration)
    names = _channel_names(case)
    channels = [
        {
            "name": names[index],
            "normalization": manager.normalization_schemes[index],
            "mean": float(voxels.mean(dtype=np.float64)),
            "std": float(voxels.std(dtype=np.float64)),
            "min": float(voxels.min()),
            "max": float(voxels.max()),
        }
        for index, voxels in enumerate(case.image)
    ]
    files = [path for path in case.folder.iterdir() if path.stem.removesuffix("_seg") == case.name]
    return {
        "case": case.name,
        "dataset": case.plans.dataset_name,
        "configuration": case.configuration,
        "plans": case.plans.plans_name,
        "preprocessor": manager.preprocessor_name,
        "folder": str(case.folder),
        "num_channels": len(case.image),
        "shape": list(case.image.shape[1:]),
        "dtype": str(case.image.dtype),
        "label_dtype": str(case.label.dtype),
        "spacing_mm": list(case.spacing_mm),
        "original_spacing_mm": list(case.original_spacing_mm),
        "original_shape": _integers(case.properties.get("shape_before_cropping", ())),
        "crop_box": [_integers(part) for part in case.properties.get("bbox_used_for_cropping", ())],
        "channels": channels,
        "labels": _count_labels(case),
        "bytes_on_disk": sum(path.stat().st_size for path in files),
    }


def _channel_names(case: PreprocessedCase) -> list[str]:
    """A preprocessor may make other channels than there are images."""
    names = channel_names(case.dataset_json)
    return [names[index] if index < len(names) else f"channel {index}" for index in range(len(case.image))]


def _integers(values: Sequence[Any]) -> list[int]:
    return [int(value) for value in values]


def _count_labels(case: PreprocessedCase) -> list[dict[str, Any]]:
    values, counts = np.unique(case.label, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    labels = {
        name: value if isinstance(value, list) else [value] for name, value in case.dataset_json["labels"].items()
    }
    known = {value for members in labels.values() for value in members}
    labels |= {"outside the mask": [OUTSIDE]} if OUTSIDE in found else {}
    labels |= {f"undeclared {value}": [value] for value in found if value not in known | {OUTSIDE}}
    rows = []
    for name, members in labels.items():
        voxels = sum(found.get(int(value), 0) for value in members)
        rows.append({"name": name, "values": members, "voxels": voxels, "share": voxels / case.label.size})
    return rows


def draw(case: PreprocessedCase) -> dict[str, np.ndarray]:
    """A slice across each axis for every channel, with the outlines of the labels; the ignore label has none.

    Returns:
        Caption to H W 3, uint8. The slices of a 2D configuration are shown alone.
    """
    ignored = case.plans.get_label_manager(case.dataset_json).ignore_label
    label = np.where(case.label == ignored, 0, case.label) if ignored is not None else case.label
    is_2d = len(case.plans.get_configuration(case.configuration).patch_size) == 2
    pictures = {}
    for name, voxels in zip(_channel_names(case), case.image, strict=True):
        for axis in range(1 if is_2d else 3):
            spacing = [case.spacing_mm[other] for other in range(3) if other != axis]
            pictures[f"{name}, across axis {axis}"] = draw_case(
                np.moveaxis(voxels, axis, 0), np.moveaxis(label, axis, 0), (1.0, *spacing), PICTURE_SIDE
            )
    return pictures
