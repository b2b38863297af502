"""nnU-Net's losses as factories for the field ``loss_fn``.

Each equals the loss of nnU-Net's trainer class on the same input; deep supervision is added by nnplug. Two things are
mended: the Dice loss respects the ignore label (nnU-Net's crashes or counts it as a region), and a batch in which every
voxel is ignored gives cross-entropy 0 instead of NaN.

Axis letters: B batch, C classes or regions; ``*`` stands for the spatial axes. Network outputs are raw logits
(B, C, *). Targets are (B, 1, *) label values, or (B, C, *) with one channel a region and, where the data set has an
ignore label, one more last channel that marks the ignored voxels.
"""

from __future__ import annotations

import torch
from nnplug import LossContext, NnplugError, loss_traits
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import nn
from torch.nn import functional

from nnplug_stock.settings import check_not_negative, check_setting

NO_LABEL = -100  # torch's value for "no label is ignored"


@loss_traits(supports_ignore_label=True, supports_regions=True)
def dice_loss(context: LossContext, *, smooth: float = 1e-5) -> nn.Module:
    """Soft Dice alone.

    Args:
        context: the data set and the run.
        smooth: added to numerator and denominator, >= 0.

    Returns:
        A loss in [-1, 0]; the background counts only with regions.

    Source:
        nnUNetTrainerDiceLoss; Drozdzal et al. 2016, arXiv:1608.04117.
    """
    return SoftDice(context, smooth)


@loss_traits(supports_ignore_label=True)
def ce_loss(context: LossContext) -> nn.Module:
    """Cross-entropy alone, averaged over the voxels that are not ignored.

    Source:
        nnUNetTrainerCELoss.
    """
    return CrossEntropy(context)


@loss_traits(supports_ignore_label=True)
def topk_loss(context: LossContext, *, k: float = 10.0, label_smoothing: float = 0.0) -> nn.Module:
    """Cross-entropy averaged over the worst voxels of the batch.

    Args:
        context: the data set and the run.
        k: share of the voxels that count, in percent, above 0 and up to 100. Ignored voxels are voxels with loss 0.
        label_smoothing: 0 to 1.

    Source:
        nnUNetTrainerTopk10Loss, nnUNetTrainerTopk10LossLS01; Wu et al. 2016, arXiv:1605.06885.
    """
    return TopKCrossEntropy(context, k, label_smoothing)


@loss_traits(supports_ignore_label=True)
def dice_topk_loss(
    context: LossContext, *, k: float = 10.0, label_smoothing: float = 0.0, smooth: float = 1e-5
) -> nn.Module:
    """The sum of :func:`dice_loss` and :func:`topk_loss`.

    Source:
        nnUNetTrainerDiceTopK10Loss.
    """
    return Sum(SoftDice(context, smooth), TopKCrossEntropy(context, k, label_smoothing))


@loss_traits(supports_ignore_label=True, supports_regions=True)
def dice_ce_loss(
    context: LossContext, *, smooth: float = 1e-5, weight_ce: float = 1.0, weight_dice: float = 1.0
) -> nn.Module:
    """nnU-Net's default: soft Dice and cross-entropy, binary cross-entropy with regions.

    Args:
        context: the data set and the run.
        smooth: added to the numerator and denominator of Dice, >= 0. nnUNetTrainerDiceCELoss_noSmooth has 0.
        weight_ce: factor of the cross-entropy, >= 0.
        weight_dice: factor of Dice, > 0; with regions also 0, then ``weight_ce`` is not.

    Source:
        nnUNetTrainer, nnUNetTrainerDiceCELoss_noSmooth; Isensee et al. 2021, doi:10.1038/s41592-020-01008-z.
    """
    for name, value in (("smooth", smooth), ("weight_ce", weight_ce), ("weight_dice", weight_dice)):
        check_not_negative(f"loss_fn.{name}", value)
    if weight_dice == 0 and not context.has_regions:
        raise NnplugError("loss_fn.weight_dice is 0: for cross-entropy alone take ce_loss.")
    if weight_dice == weight_ce == 0:
        raise NnplugError("loss_fn.weight_ce and loss_fn.weight_dice are both 0.")
    dice = {"batch_dice": context.batch_dice, "do_bg": context.has_regions, "smooth": smooth, "ddp": context.is_ddp}
    if context.has_regions:
        return DC_and_BCE_loss(
            {},
            dice,
            weight_ce=weight_ce,
            weight_dice=weight_dice,
            use_ignore_label=context.ignore_label is not None,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    return DC_and_CE_loss(
        dice,
        {},
        weight_ce=weight_ce,
        weight_dice=weight_dice,
        ignore_label=context.ignore_label,
        dice_class=MemoryEfficientSoftDiceLoss,
    )


class SoftDice(nn.Module):
    """Soft Dice with softmax and without background, or with sigmoid over regions."""

    def __init__(self, context: LossContext, smooth: float) -> None:
        super().__init__()
        check_not_negative("loss_fn.smooth", smooth)
        self.has_regions = context.has_regions
        self.ignore_label = context.ignore_label
        self.dice = MemoryEfficientSoftDiceLoss(
            apply_nonlin=torch.sigmoid if context.has_regions else softmax_helper_dim1,
            batch_dice=context.batch_dice,
            do_bg=context.has_regions,
            smooth=smooth,
            ddp=context.is_ddp,
        )

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.ignore_label is None:
            return self.dice(output, target)
        if self.has_regions:
            return self.dice(output, target[:, :-1], loss_mask=target[:, -1:] == 0)
        mask = target != self.ignore_label
        return self.dice(output, torch.where(mask, target, 0), loss_mask=mask)


class CrossEntropy(nn.Module):
    """Cross-entropy with label values of any number type."""

    def __init__(self, context: LossContext) -> None:
        super().__init__()
        self.ignore_label = context.ignore_label

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels = target[:, 0].long()
        if self.ignore_label is None:
            return functional.cross_entropy(output, labels)
        # a mean over no voxel is NaN; their sum is 0 and still has a gradient
        reduction = "mean" if (labels != self.ignore_label).any() else "sum"
        return functional.cross_entropy(output, labels, ignore_index=self.ignore_label, reduction=reduction)


class TopKCrossEntropy(nn.Module):
    """Cross-entropy averaged over the ``k`` percent of voxels where it is greatest."""

    def __init__(self, context: LossContext, k: float, label_smoothing: float) -> None:
        super().__init__()
        check_setting("loss_fn.k", k, "a number > 0 and <= 100", lambda number: 0 < number <= 100)
        expected = "a number from 0 to 1"
        check_setting("loss_fn.label_smoothing", label_smoothing, expected, lambda number: 0 <= number <= 1)
        self.ignore_index = NO_LABEL if context.ignore_label is None else context.ignore_label
        self.k = k
        self.label_smoothing = label_smoothing

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss_per_voxel = functional.cross_entropy(
            output,
            target[:, 0].long(),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        ).flatten()
        # the lowest resolution of deep supervision may have fewer voxels than 100 / k, and a mean over none is NaN
        count = max(1, int(loss_per_voxel.numel() * self.k / 100))
        return torch.topk(loss_per_voxel, count, sorted=False).values.mean()


class Sum(nn.Module):
    """The sum of losses."""

    def __init__(self, *losses: nn.Module) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(output, target) for loss in self.losses]).sum()
