"""nnU-Net's loader of training batches with two settings: where a patch is cut, and how often each case is drawn.

D H W voxels; a 2D patch is (1, H, W), as in nnU-Net's loader. A patch is cut larger than the network's (the initial
patch), augmented, and cropped to its middle (the final patch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnplug_sampling.case_weights import read_weights, sampling_probabilities, write_weights


class SamplingLoader(nnUNetDataLoader):
    """nnU-Net's loader of training batches.

    Args:
        data, *args, **kwargs: those of ``nnUNetDataLoader``.
        better_ignore: where stock nnU-Net centres the patch on an annotated voxel, put the voxel anywhere in the final
            patch, each place as likely as the other. Changes nothing without an ignore label.
        case_weights: name of a file in the folder of the preprocessed data set, see
            :func:`nnplug_sampling.case_weights.read_weights`. Cases are drawn with probabilities proportional to it.
        log: takes what the user should know.

    Raises:
        NnplugError: see :mod:`nnplug_sampling.case_weights`.

    Source:
        The published class nnUNetTrainer_betterIgnoreSampling shifts within the initial patch, so that the voxel is
        often cropped away; here the final patch always holds it, unless augmentation rotates or scales it out.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        *args: Any,
        better_ignore: bool = False,
        case_weights: str | None = None,
        log: Callable[[str], Any] = print,
        **kwargs: Any,
    ) -> None:
        super().__init__(data, *args, **kwargs)
        self.better_ignore = better_ignore
        if better_ignore and not self.has_ignore:
            log("better_ignore_sampling changes nothing: this data set has no ignore label. Patches are as in nnU-Net.")
        if case_weights is not None:
            folder = Path(data.source_folder).parent
            weights = read_weights(folder, case_weights)
            known = data.get_identifiers(data.source_folder)
            self.sampling_probabilities = sampling_probabilities(weights, self.indices, known, folder / case_weights)

    @staticmethod
    def write_example_inputs(
        folder: Path, cases: Sequence[str], *, case_weights: str | None = None, **_: object
    ) -> None:
        """Write the files that the settings ask for, so that nnplug's checks can use the loader on made-up data."""
        if case_weights is not None:
            write_weights(folder, case_weights, {case: 1.0 + index for index, case in enumerate(cases)})

    def get_bbox(
        self,
        data_shape: Sequence[int],
        force_fg: bool,
        class_locations: Mapping[Any, Any] | None,
        overwrite_class: int | tuple[int, ...] | None = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Where the initial patch begins and ends, in voxels of the case; it may begin below 0 or end behind it.

        Args:
            data_shape: (D, H, W) of the case.
            force_fg: the patch has to hold foreground; drawn as in nnU-Net.
            class_locations: voxels by class, (N, 4) as (channel, D, H, W); never changed.
            overwrite_class, verbose: see nnU-Net.
        """
        annotated = None
        if self.better_ignore and self.has_ignore and not force_fg:
            assert class_locations is not None, "nnU-Net's preprocessing writes them"
            annotated = class_locations[self.annotated_classes_key]
        if annotated is None or len(annotated) == 0:
            return super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        voxel = np.asarray(annotated[np.random.choice(len(annotated))][1:])
        initial, final = np.array(self.patch_size), np.array(self.final_patch_size)
        # augmentation crops the final patch so that the centres, rounded down, meet
        margin = initial // 2 - final // 2
        lower, upper = self._range(np.array(data_shape), initial)
        start = np.clip(voxel - np.random.randint(0, final) - margin, lower, upper)
        return start.tolist(), (start + initial).tolist()

    def _range(self, shape: np.ndarray, patch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last beginning that nnU-Net allows: the final patch reaches the border and no further."""
        padding = np.maximum(self.need_to_pad, patch - shape)
        return -padding // 2, shape + padding // 2 + padding % 2 - patch
