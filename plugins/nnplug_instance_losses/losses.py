"""Blob loss and Dice in Voronoi cells, each beside nnU-Net's own loss.

Axis letters: B batch, C channels of the network, F foreground classes or regions, I channels with ids, K components of
the whole batch, N voxels; ``*`` stands for the spatial axes. Logits are (B, C, *), targets (B, 1, *) label values, or
(B, F, *) regions with the ignore channel last. Everything is computed in float32 or better.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from nnplug import NnplugError, loss_traits
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import distributed, nn
from torch.nn import functional

from nnplug_instance_losses.channels import CONNECTIVITY, InstanceChannels
from nnplug_instance_losses.sums import Components, Sums, find_components, sum_components

if TYPE_CHECKING:
    from nnplug import LossContext

SMOOTH = 1e-5  # nnU-Net's and the papers'


@loss_traits(handles_deep_supervision=True, supports_ignore_label=True, supports_regions=True)
class InstanceLoss(nn.Module):
    """``weight_global`` * (Dice + cross-entropy of nnU-Net) + ``weight_instance`` * (mean over the components).

    A component's loss compares it with what is predicted inside of it and around it. It is averaged over the components
    of a class in a sample, then over the samples that have any, then over the classes that have any (one against the
    rest on softmax probabilities; regions on sigmoid ones). Under DDP the last two means run over all processes.

    Args:
        context: the data set and the run.
        weight_global: >= 0.
        weight_instance: >= 0; one of the two is above 0.
        connectivity: ``"full"``: voxels that touch at a corner are connected (8 neighbours in 2D, 26 in 3D);
            ``"face"``: only those that share a face (4, 6).
        deep_supervision: ``"all"``: the components' loss at every output with nnU-Net's weights, where a component
            counts as long as voxels of it are left; ``"full"``: only at the first output, with weight 1.

    Raises:
        NnplugError: a setting is out of range, or the data set has no foreground.
    """

    cells: ClassVar[bool]
    cross_entropy: ClassVar[bool]

    def __init__(
        self,
        context: LossContext,
        weight_global: float = 1.0,
        weight_instance: float = 1.0,
        connectivity: str = "full",
        deep_supervision: str = "all",
    ) -> None:
        super().__init__()
        for name, weight in (("weight_global", weight_global), ("weight_instance", weight_instance)):
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            _require(is_number and weight >= 0, f"loss_fn.{name}: expected a number >= 0, got {weight!r}.")
        _require(weight_global + weight_instance > 0, "loss_fn: weight_global and weight_instance are both 0.")
        _require_one_of("connectivity", connectivity, tuple(CONNECTIVITY))
        _require_one_of("deep_supervision", deep_supervision, ("all", "full"))
        _require(
            context.has_regions or context.num_classes > 1, "loss_fn: the data set has no label but the background."
        )
        self.context = context
        self.weight_global, self.weight_instance = weight_global, weight_instance
        self.deep_supervision = deep_supervision
        self.channels = InstanceChannels(context, connectivity, cells=self.cells)
        if weight_instance == 0:
            self.target_transform = None

    def target_transform(self) -> InstanceChannels:
        """Makes the components or cells in the loader's workers."""
        return self.channels

    def forward(
        self,
        output: torch.Tensor | list[torch.Tensor],
        target: torch.Tensor | list[torch.Tensor],
        extra: torch.Tensor | list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            output: logits (B, C, *), a list of them with deep supervision.
            target: likewise, (B, 1, *) or (B, F, *).
            extra: likewise, ids (B, I, *) that ``target_transform`` has made; None to make them here.
        """
        supervised = isinstance(output, list | tuple)
        outputs, targets = (output, target) if supervised else ([output], [target])
        if self.weight_instance == 0:
            extra = [None] * len(targets)
        elif extra is None:
            extra = self.channels.of_batch(targets)
        elif not supervised:
            extra = [extra]
        weights = self.context.supervision_weights if supervised else (1.0,)
        value = torch.zeros((), device=outputs[0].device)
        for number, (weight, *tensors) in enumerate(zip(weights, outputs, targets, extra, strict=True)):
            of_instances = weight if self.deep_supervision == "all" else float(number == 0)
            if weight != 0:
                value = value + self._one_output(
                    *tensors, weight * self.weight_global, of_instances * self.weight_instance
                )
        return value

    def _one_output(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        ids: torch.Tensor | None,
        weight_global: float,
        weight_instance: float,
    ) -> torch.Tensor:
        logits = logits.flatten(2)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        target = target.flatten(2)
        # both come from settings, so that every process decides alike and meets the others in their collective calls
        has_instances, cross_entropy = weight_instance != 0, weight_instance != 0 and self.cross_entropy
        if not has_instances:
            ids = self._one_id_a_class(target)
        components = find_components(target, ids.flatten(2), self.context, cells=self.cells and has_instances)
        if components.valid is not None:
            # not a product: logits of ignored voxels may be anything, infinite too
            logits = logits.masked_fill(~components.valid, 0)
        if self.context.has_regions:
            log_p = functional.logsigmoid(logits)
            log_opposite = functional.logsigmoid(-logits) if cross_entropy else None
        else:
            log_p, log_opposite = logits.log_softmax(1), None
        sums = sum_components(log_p, log_opposite, components, cross_entropy=cross_entropy)
        value = weight_instance * self._instance_term(sums, components) if has_instances else 0
        if weight_global == 0 and has_instances:
            return value
        if self.context.has_regions:
            voxel_loss = self._of_regions(logits, target, components.valid)
        else:
            voxel_loss = self._of_labels(log_p, target, components.valid)
        return value + weight_global * (voxel_loss - self._dice(sums, components))

    def _one_id_a_class(self, target: torch.Tensor) -> torch.Tensor:
        """Ids for nnU-Net's part alone: (B, 1, N), with regions (B, F, N)."""
        if not self.context.has_regions:
            return target.int()
        regions = target[:, : self.context.num_classes] > 0
        return regions * torch.arange(1, regions.shape[1] + 1, dtype=torch.int32, device=target.device)[:, None]

    # --- the components

    def _instance_term(self, sums: Sums, components: Components) -> torch.Tensor:
        around = components.of_components(sums.around)
        losses = 1 - (2 * sums.inside + SMOOTH) / (sums.inside + around + components.sizes + SMOOTH)
        if self.cross_entropy:
            total = sums.inside_ce + components.of_components(sums.around_ce)
            losses = losses + total / (components.sizes + components.sizes_around()).clamp(min=1)
        return (self._shares(components, losses.dtype) * losses).sum()

    def _shares(self, components: Components, dtype: torch.dtype) -> torch.Tensor:
        """(K,) what each component contributes to the mean; they sum to 1, under DDP to that on average."""
        is_there = (components.sizes > 0).to(dtype)
        in_channel = components.sum_by_channel(is_there)
        num_samples = (in_channel > 0).to(dtype).sum(0)
        num_processes = 1
        if self.context.is_ddp:
            distributed.all_reduce(num_samples)
            num_processes = distributed.get_world_size()
        num_classes = (num_samples > 0).sum().clamp(min=1)
        in_class = num_samples.expand_as(in_channel).flatten()[components.channels]
        together = in_channel.flatten()[components.channels] * in_class * num_classes
        return num_processes * is_there / together.clamp(min=1)

    # --- nnU-Net's loss

    def _dice(self, sums: Sums, components: Components) -> torch.Tensor:
        """What nnU-Net's MemoryEfficientSoftDiceLoss computes, from sums that are there already."""
        overlap = components.sum_by_channel(sums.inside)
        volumes = torch.stack([overlap, sums.background, components.sizes_of_channels().to(overlap)])
        if self.context.batch_dice:
            volumes = volumes.sum(1)
            if self.context.is_ddp:
                volumes = AllGatherGrad.apply(volumes).sum(0)
        overlap, background, labelled = volumes
        return ((2 * overlap + SMOOTH) / (overlap + background + labelled + SMOOTH)).mean()

    def _of_labels(self, log_p: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """nnU-Net's cross-entropy: mean over the voxels."""
        labels = target[:, 0].long()
        if valid is None:
            return functional.nll_loss(log_p, labels)
        total = functional.nll_loss(log_p, labels, ignore_index=self.context.ignore_label, reduction="sum")
        return total / valid.sum().clamp(min=1)

    def _of_regions(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """nnU-Net's cross-entropy: mean over the voxels, with an ignore label the sum over the regions of that."""
        regions = target[:, : self.context.num_classes].to(logits)
        if valid is None:
            return functional.binary_cross_entropy_with_logits(logits, regions)
        values = functional.binary_cross_entropy_with_logits(logits, regions, reduction="none")
        return (values * valid).sum() / valid.sum().clamp(min=1)


class BlobDiceLoss(InstanceLoss):
    """Every component against the whole background: 1 - Dice, the voxels of other components left out.

    1 - (2 S_k + e) / (S_0 + S_k + n_k + e) with the sums of probability S_0 over what is not of the class and S_k over
    the component, its size n_k and e = 1e-5. Settings: see :class:`InstanceLoss`.

    Source: Kofler et al. 2022, https://arxiv.org/abs/2205.08209, equations 1 to 3, with Dice as the criterion.
    """

    cells, cross_entropy = False, False


class BlobDiceCELoss(InstanceLoss):
    """As :class:`BlobDiceLoss`, plus the mean cross-entropy over the same voxels (of the class against the rest).

    Source: as of :class:`BlobDiceLoss`, with Dice and cross-entropy as the criterion.
    """

    cells, cross_entropy = False, True


class RegionDiceLoss(InstanceLoss):
    """Every component in its Voronoi cell, the voxels that no other component of its class is nearer to: 1 - Dice.

    A false alarm counts in the cell that it falls into. Distances are Euclidean, in voxels; ties go to the component
    with the lowest number (in the order of the volume in memory). Settings: see :class:`InstanceLoss`.

    Source: Jaus et al. 2024, https://arxiv.org/abs/2410.18684 (the cells); Bouteille et al. 2025,
    https://arxiv.org/abs/2511.17146 (as a loss).
    """

    cells, cross_entropy = True, False


class RegionDiceCELoss(InstanceLoss):
    """As :class:`RegionDiceLoss`, plus the mean cross-entropy in the cell (of the class against the rest).

    Source: Bouteille et al. 2025, https://arxiv.org/abs/2511.17146.
    """

    cells, cross_entropy = True, True


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise NnplugError(message)


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, f"loss_fn.{name}: expected {' or '.join(known)}, got {value!r}.")
