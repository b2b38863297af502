"""Values in segmentations that the data set does not have, found where a patch is loaded."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnplug.errors import NnplugError

_OUTSIDE = -1  # what nnU-Net's preprocessing and padding write where there is no image


def with_label_check(transforms: Any, labels: LabelManager) -> Any:
    """The transforms of a loader, with a look at each segmentation before them.

    Later it would be too late: transforms make regions of the values, and a loss fails in ways that do not say why.

    Args:
        transforms: of nnU-Net or a config; without any there is nothing to look before.
        labels: of the data set.
    """
    if transforms is None:
        return None
    # one that composes in a way of its own stays as it is
    steps = transforms.transforms if type(transforms) is ComposeTransforms else [transforms]
    highest = max([*labels.all_labels, *([labels.ignore_label] if labels.has_ignore_label else [])])
    return ComposeTransforms([_LabelCheck(highest), *steps])


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
        if labels.is_floating_point() or labels.dtype == torch.uint16:
            labels = labels.long()
        lowest, highest = (int(value) for value in torch.aminmax(labels))
        if lowest < _OUTSIDE or highest > self.highest:
            found = highest if highest > self.highest else lowest
            raise NnplugError(
                f"The segmentation holds the value {found}, and the labels in dataset.json are 0 to {self.highest}. "
                "Mend the label image or dataset.json, and preprocess again."
            )
        return data_dict
