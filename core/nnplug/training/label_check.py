"""Values in segmentations that the data set does not have, found where a patch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnplug.errors import NnplugError
from nnplug.inventory.rules import label_values

_OUTSIDE = -1  # what nnU-Net's preprocessing and padding write where there is no image


def with_label_check(transforms: Any, labels: Mapping[str, Any]) -> Any:
    """The transforms of a loader, with a look at each segmentation before them.

    Later it would be too late: transforms make regions of the values, and a loss fails in ways that do not say why.

    Args:
        transforms: of nnU-Net or a config.
        labels: of ``dataset.json``.
    """
    steps = transforms.transforms if isinstance(transforms, ComposeTransforms) else [transforms]
    return ComposeTransforms([_LabelCheck(max(label_values(labels))), *steps])


class _LabelCheck(BasicTransform):
    def __init__(self, highest: int) -> None:
        super().__init__()
        self.highest = highest

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        del params
        segmentation = data_dict.get("segmentation")
        if segmentation is None or not len(segmentation):
            return data_dict
        labels = torch.as_tensor(segmentation[0])  # what follows in a cascade is of the stage before
        lowest, highest = (int(value) for value in torch.aminmax(labels))
        if lowest < _OUTSIDE or highest > self.highest:
            found = highest if highest > self.highest else lowest
            raise NnplugError(
                f"The segmentation holds the value {found}, and the labels in dataset.json are 0 to {self.highest}. "
                "Mend the label image or dataset.json, and preprocess again."
            )
        return data_dict
