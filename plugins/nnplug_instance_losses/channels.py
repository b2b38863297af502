"""Components or Voronoi cells as extra channels of a segmentation, made where batches are made.

Axis letters: B batch, C channels of the segmentation, F foreground classes or regions, I channels with ids; ``*``
stands for the spatial axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cc3d
import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from nnplug import NnplugError
from torch.nn import functional

from nnplug_instance_losses.voronoi import voronoi_cells

if TYPE_CHECKING:
    from nnplug import LossContext

# voxels that count as neighbours: those that share a face, or also those that share an edge or a corner
CONNECTIVITY = {"face": {2: 4, 3: 6}, "full": {2: 8, 3: 26}}


class InstanceChannels(SegOnlyTransform):
    """Appends to a segmentation the numbers of its components, or of the Voronoi cells that they make.

    A component is a connected set of voxels of one class or region. Ignored voxels belong to no component and no cell:
    a component ends where they begin, and two parts that touch through ignored voxels only are two components.

    Args:
        context: the data set.
        connectivity: ``"full"`` (8 neighbours in 2D, 26 in 3D) or ``"face"`` (4, 6).
        cells: Voronoi cells instead of components.
    """

    def __init__(self, context: LossContext, connectivity: str, *, cells: bool) -> None:
        super().__init__()
        self.neighbours = CONNECTIVITY[connectivity][context.spatial_dims]
        self.has_regions = context.has_regions
        self.ignore_label = context.ignore_label
        self.num_foreground = context.num_classes - (not context.has_regions)
        self.cells = cells

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([segmentation, self.of_sample(segmentation)])

    def of_batch(self, targets: list[torch.Tensor]) -> list[torch.Tensor]:
        """The channels for targets (B, C, *) that came without, the first one at full resolution.

        Lower resolutions get the ids of the first as nnU-Net samples its labels; where they are sampled in another way,
        which a ``base_trainer`` may do, ids of their own.
        """
        full = targets[0].cpu()
        ids = self._of_samples(full)
        made = []
        for target in targets:
            here = target.cpu()
            is_sampled = torch.equal(_nearest(full, here.shape[2:]), here)
            made.append(_nearest(ids, here.shape[2:]) if is_sampled else self._of_samples(here))
        return [channels.to(target.device) for channels, target in zip(made, targets, strict=True)]

    def _of_samples(self, target: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.of_sample(sample) for sample in target])

    def of_sample(self, segmentation: torch.Tensor) -> torch.Tensor:
        """Ids of one sample.

        Args:
            segmentation: (C, *): label values first; with regions one channel a region, the ignore channel last.

        Returns:
            (I, *) int32. Components: I is 1 for label maps, F with regions; 0 where there is none. Cells: I is F; 0
            where voxels are ignored or the class is absent. Ids count from 1 over all classes of the sample.

        Raises:
            NnplugError: a label that the data set does not have.
        """
        values = segmentation.numpy()
        if self.has_regions:
            ids, ignored = self._of_regions(values)
        else:
            ids, ignored = self._of_labels(values[0])
        if self.cells:
            ids = np.stack([voronoi_cells(channel) if channel.any() else channel for channel in ids])
            if ignored is not None:
                ids[:, ignored] = 0
        return torch.from_numpy(ids)

    def _of_labels(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        ignored = None if self.ignore_label is None else labels == self.ignore_label
        classes = labels.astype(np.int32)
        if ignored is not None:
            classes[ignored] = 0
        if classes.min() < 0 or classes.max() > self.num_foreground:
            strange = next(value for value in np.unique(classes) if not 0 <= value <= self.num_foreground)
            raise NnplugError(f"A target holds the label {strange}; the data set has 0 to {self.num_foreground}.")
        ids = self._components(classes)
        if not self.cells:
            return ids[None], ignored
        return np.stack([np.where(classes == c, ids, 0) for c in range(1, self.num_foreground + 1)]), ignored

    def _of_regions(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        ignored = None if self.ignore_label is None else values[-1] > 0
        channels, count = [], 0
        for region in values[: self.num_foreground] > 0:
            ids = self._components((region if ignored is None else region & ~ignored).astype(np.uint8))
            channels.append(np.where(ids > 0, ids + count, 0))
            count += int(ids.max())
        return np.stack(channels), ignored

    def _components(self, classes: np.ndarray) -> np.ndarray:
        return cc3d.connected_components(classes, connectivity=self.neighbours, out_dtype=np.uint32).view(np.int32)


def _nearest(values: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """(B, C, *) at another size, as nnU-Net's DownsampleSegForDSTransform makes it."""
    if values.shape[2:] == size:
        return values
    return functional.interpolate(values.float(), size, mode="nearest-exact").to(values.dtype)
