"""MONAI's segmentation losses for nnU-Net's targets: ignore label, regions, half precision.

All of them take logits (B, C, *spatial) and a one-hot target (B, C, *spatial) of floats, with one more last channel
that is 1 at ignored voxels where the data set has an ignore label. The activation is a softmax, or a sigmoid with
regions. All are minimised and computed in float32. Ignored voxels change neither the value nor a gradient.

With nnU-Net's ``batch_dice`` the overlaps are summed over the batch, of one process: they are not gathered under DDP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from monai import losses
from nnplug import NnplugError, loss_traits
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from nnplug import LossContext


class Voxels(NamedTuple):
    """What a loss is computed from.

    Attributes:
        logits: (B, C, *spatial) float32, 0 at ignored voxels.
        probabilities: (B, C, *spatial) in 0..1, 0 at ignored voxels.
        target: (B, C, *spatial) of 0 and 1, 0 at ignored voxels.
        valid: (B, 1, *spatial), False at ignored voxels; None where the data set ignores nothing.
    """

    logits: torch.Tensor
    probabilities: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor | None


@loss_traits(target_format="one_hot", supports_ignore_label=True, supports_regions=True)
class MaskedLoss(nn.Module):
    """Splits off the ignore channel and applies the activation; a subclass computes the loss.

    Args:
        context: the data set: ignore label and regions.
    """

    def __init__(self, context: LossContext) -> None:
        super().__init__()
        self.has_regions = context.has_regions
        self.has_ignore_channel = context.ignore_label is not None
        self.batch_dice = context.batch_dice

    def foreground_only(self, include_background: bool) -> bool:
        """Whether channel 0 is left out; with regions it is a region and never left out."""
        return not include_background and not self.has_regions

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, target, valid = logits.float(), target.float(), None
        if self.has_ignore_channel:
            valid = target[:, -1:] < 0.5
            target = target[:, :-1] * valid
            # where() and not a product: logits of ignored voxels may be anything, infinite too
            logits = torch.where(valid, logits, 0.0)
        probabilities = torch.sigmoid(logits) if self.has_regions else torch.softmax(logits, dim=1)
        if valid is not None:
            probabilities = probabilities * valid
        return self.compute(Voxels(logits, probabilities, target, valid))

    def compute(self, voxels: Voxels) -> torch.Tensor:
        """The loss, a scalar."""
        raise NotImplementedError


class GeneralizedDiceLoss(MaskedLoss):
    """1 - generalised Dice: each class weighs by the inverse of its squared volume.

    Args:
        context: the data set.
        w_type: weight of a class of volume v: ``square`` 1/v^2, ``simple`` 1/v, ``uniform`` 1.
        include_background: count the background as a class, as in the paper.
        smooth: added to both sides of the fraction. MONAI's default of 1e-5 is not small beside sums divided by squared
            volumes: of a patch of 128x128x128 with every voxel wrong it makes 0.78 and not 1.

    Source: Sudre et al. 2017, https://arxiv.org/abs/1707.03237, equation in section 2.1; MONAI's GeneralizedDiceLoss.
    """

    def __init__(
        self, *, context: LossContext, w_type: str = "square", include_background: bool = True, smooth: float = 1e-12
    ) -> None:
        super().__init__(context)
        _require(w_type in ("square", "simple", "uniform"), f"w_type is square, simple or uniform, not '{w_type}'")
        _require(smooth > 0, f"smooth must be above 0, not {smooth}")
        self.loss = losses.GeneralizedDiceLoss(
            include_background=not self.foreground_only(include_background),
            w_type=w_type,
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=self.batch_dice,
        )

    def compute(self, voxels: Voxels) -> torch.Tensor:
        return self.loss(voxels.probabilities, voxels.target)


class DiceFocalLoss(MaskedLoss):
    """Weighted sum of 1 - Dice and of the focal loss.

    Unlike MONAI's DiceFocalLoss, whose focal part is always a sigmoid one, both parts have the same activation.

    Args:
        context: the data set.
        gamma: exponent of the focal loss, 0 or at least 1; 0 is cross entropy.
        alpha: class weight of the focal loss: one value for foreground against background in 0..1, or one a channel.
        lambda_dice: weight of the Dice part.
        lambda_focal: weight of the focal part (its mean over voxels and channels).
        include_background: count the background in the Dice part; the focal part always does.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, equations 4 and 5; MONAI's DiceLoss and FocalLoss.
    """

    def __init__(
        self,
        *,
        context: LossContext,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        include_background: bool = True,
    ) -> None:
        super().__init__(context)
        _require(gamma == 0 or gamma >= 1, f"gamma must be 0 or at least 1, not {gamma}")
        _require(lambda_dice >= 0 and lambda_focal >= 0, "lambda_dice and lambda_focal must not be negative")
        self.lambda_dice = lambda_dice
        self.lambda_focal = lambda_focal
        self.dice = _dice(self, include_background)
        self.focal = losses.FocalLoss(gamma=gamma, alpha=alpha, use_softmax=not self.has_regions, reduction="none")

    def compute(self, voxels: Voxels) -> torch.Tensor:
        focal = _mean_of_valid(self.focal(voxels.logits, voxels.target), voxels.valid)
        return self.lambda_dice * self.dice(voxels.probabilities, voxels.target) + self.lambda_focal * focal


class TverskyLoss(MaskedLoss):
    """1 - Tversky index: Dice in which false positives and false negatives weigh differently.

    Args:
        context: the data set.
        alpha: weight of false positives. 0.3 with 0.7 is the paper's best; MONAI's default of 0.5 for both is Dice.
        beta: weight of false negatives.
        include_background: count the background as a class.
        smooth: added to both sides of the fraction, in voxels.

    Source: Salehi et al. 2017, https://arxiv.org/abs/1706.05721, equation 3; MONAI's TverskyLoss.
    """

    def __init__(
        self,
        *,
        context: LossContext,
        alpha: float = 0.3,
        beta: float = 0.7,
        include_background: bool = True,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(context)
        _require(alpha >= 0 and beta >= 0, "alpha and beta must not be negative")
        _require(smooth > 0, f"smooth must be above 0, not {smooth}")
        self.loss = losses.TverskyLoss(
            include_background=not self.foreground_only(include_background),
            alpha=alpha,
            beta=beta,
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=self.batch_dice,
        )

    def compute(self, voxels: Voxels) -> torch.Tensor:
        return self.loss(voxels.probabilities, voxels.target)


class SoftClDiceLoss(MaskedLoss):
    """(1 - alpha) * (1 - Dice) + alpha * (1 - clDice), for tubes: vessels, airways, nerves.

    clDice compares soft skeletons and alone says nothing about thickness, so it is combined with Dice as in its paper.
    Ignored voxels are background to the skeletons of prediction and target alike. clDice sums over the classes of a
    sample, also with ``batch_dice``.

    Args:
        context: the data set.
        alpha: share of clDice, 0..1.
        num_iterations: erosions of the soft skeleton; at least the largest radius of a tube in voxels. Time and memory
            grow with it.
        include_background: count the background as a class.

    Source: Shit et al. 2021, https://arxiv.org/abs/2003.07311, equation 3 and algorithm 1; MONAI's SoftclDiceLoss.
    """

    def __init__(
        self,
        *,
        context: LossContext,
        alpha: float = 0.5,
        num_iterations: int = 3,
        include_background: bool = False,
    ) -> None:
        super().__init__(context)
        _require(0 <= alpha <= 1, f"alpha must be in 0..1, not {alpha}")
        _require(num_iterations >= 0, f"num_iterations must not be negative, not {num_iterations}")
        self.alpha = alpha
        self.dice = _dice(self, include_background)
        self.cldice = losses.SoftclDiceLoss(
            iter_=num_iterations, include_background=not self.foreground_only(include_background)
        )

    def compute(self, voxels: Voxels) -> torch.Tensor:
        dice = self.dice(voxels.probabilities, voxels.target)
        return (1 - self.alpha) * dice + self.alpha * self.cldice(voxels.probabilities, voxels.target)


class HausdorffDTLoss(MaskedLoss):
    """Squared error weighted by the distance to the borders of prediction and target, plus 1 - Dice and cross entropy.

    The distance part alone teaches a new network to predict background: a false alarm far away costs hundreds of times
    as much as a miss. So it comes with a small weight on top of what nnU-Net minimises. Its cost is high: four
    Euclidean distance maps a sample and class at every step, on the CPU with scipy (on the GPU where cuCIM is
    installed). Distances are in voxels. Borders towards ignored voxels count as borders.

    Args:
        context: the data set.
        alpha: exponent of the distances.
        lambda_hausdorff: weight of the distance part, whose value is not bounded; 1 is MONAI's loss.
        lambda_dice: weight of the Dice part, which the paper adds too; 0 leaves it out.
        lambda_ce: weight of the cross entropy; 0 leaves it out.
        include_background: count the background as a class.

    Source: Karimi and Salcudean 2019, https://arxiv.org/abs/1904.10030, equation 8; MONAI's HausdorffDTLoss.
    """

    def __init__(
        self,
        *,
        context: LossContext,
        alpha: float = 2.0,
        lambda_hausdorff: float = 0.01,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        include_background: bool = False,
    ) -> None:
        super().__init__(context)
        _require(alpha > 0, f"alpha must be above 0, not {alpha}")
        _require(
            min(lambda_hausdorff, lambda_dice, lambda_ce) >= 0,
            "lambda_hausdorff, lambda_dice and lambda_ce must not be negative",
        )
        self.lambda_hausdorff = lambda_hausdorff
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.dice = _dice(self, include_background)
        self.hausdorff = losses.HausdorffDTLoss(
            alpha=alpha, include_background=not self.foreground_only(include_background), reduction="none"
        )

    def compute(self, voxels: Voxels) -> torch.Tensor:
        per_sample = self.hausdorff(voxels.probabilities, voxels.target).flatten(1).mean(dim=1)
        if voxels.valid is not None:
            # MONAI averages over all voxels of a sample; the average over the valid ones is meant
            valid = voxels.valid.flatten(1).float()
            per_sample = per_sample * valid.shape[1] / valid.sum(dim=1).clamp(min=1)
        dice = self.dice(voxels.probabilities, voxels.target)
        cross_entropy = self.cross_entropy(voxels)
        return self.lambda_hausdorff * per_sample.mean() + self.lambda_dice * dice + self.lambda_ce * cross_entropy

    def cross_entropy(self, voxels: Voxels) -> torch.Tensor:
        """Mean over the valid voxels, with regions over their channels too."""
        if self.has_regions:
            per_voxel = F.binary_cross_entropy_with_logits(voxels.logits, voxels.target, reduction="none")
        else:
            per_voxel = -(F.log_softmax(voxels.logits, dim=1) * voxels.target).sum(dim=1, keepdim=True)
        return _mean_of_valid(per_voxel, voxels.valid)


def _mean_of_valid(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean of (B, C, *spatial) over the voxels that are not ignored; 0 where all are."""
    if valid is None:
        return values.mean()
    return (values * valid).sum() / (valid.sum() * values.shape[1]).clamp(min=1)


def _dice(loss: MaskedLoss, include_background: bool) -> nn.Module:
    return losses.DiceLoss(include_background=not loss.foreground_only(include_background), batch=loss.batch_dice)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise NnplugError(f"loss_fn: {message}.")
