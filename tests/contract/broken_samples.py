"""Networks, losses, samplers and the like, each with one mistake that an author could make."""

from __future__ import annotations

import threading
from typing import Any

import nnplug
import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn import functional

# --- networks --------------------------------------------------------------------------------------------------------


class Good(nn.Module):
    """Two resolutions, both with a head."""

    def __init__(
        self, input_channels: int, num_classes: int, conv: Any, deep_supervision: bool, width: int = 4
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.stem = nn.Sequential(conv(input_channels, width, 3, padding=1), nn.LeakyReLU())
        self.down = nn.Sequential(conv(width, width, 3, stride=2, padding=1), nn.LeakyReLU())
        self.head = conv(2 * width, num_classes, 1)
        self.low_head = conv(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> Any:
        full = self.stem(x)
        half = self.down(full)
        up = functional.interpolate(half, full.shape[2:])
        logits = self.head(torch.cat([full, up], 1))
        return [logits, self.low_head(half)] if self.deep_supervision else logits


def build_good(input_channels: int, num_classes: int, deep_supervision: bool, conv_op: Any) -> nn.Module:
    return Good(input_channels, num_classes, conv_op, deep_supervision)


class LooksAtValues(Good):
    """No mistake; it can not be followed on tensors without data."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x if x.sum().item() >= 0 else -x)


class UnusedParameter(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.forgotten = nn.Linear(3, 3)


class ListWithoutDeepSupervision(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return output if isinstance(output, list) else [output]


class ListWhileTraining(Good):
    """Decides by the mode, as many networks outside nnU-Net do."""

    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return output[0] if isinstance(output, list) and not self.training else output


class FlagOnlyWhenBuilt(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.several = self.deep_supervision

    def forward(self, x: torch.Tensor) -> Any:
        self.deep_supervision = self.several
        return super().forward(x)


class Softmax(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return [one.softmax(1) for one in output] if isinstance(output, list) else output.softmax(1)


class SoftmaxInEvaluation(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return output if self.training or isinstance(output, list) else output.softmax(1)


class SigmoidInEvaluation(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return output if self.training or isinstance(output, list) else output.sigmoid()


class SoftmaxOfASideOutput(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return [output[0], *(one.softmax(1) for one in output[1:])] if isinstance(output, list) else output


class LogSoftmax(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return [one.log_softmax(1) for one in output] if isinstance(output, list) else output.log_softmax(1)


class Rectified(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return [one.relu() for one in output] if isinstance(output, list) else output.relu()


class NotANumber(Good):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.log())


class NotANumberInEvaluation(Good):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x if self.training else x.log())


class GradientNotANumber(Good):
    def forward(self, x: torch.Tensor) -> Any:
        zero = 0 * self.head.weight.sum()
        return super().forward(x + zero.sqrt())


class HeadOnlyWithDeepSupervision(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if not self.deep_supervision:
            del self.low_head


class OtherInitialState(Good):
    """Something random that is not saved."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("noise", torch.rand(1), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x * (1 + self.noise))


class MixesSamples(Good):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x + 2 * x.mean(0, keepdim=True))


class OtherHeadForPrediction(Good):
    def forward(self, x: torch.Tensor) -> Any:
        outputs = super().forward(x)
        return outputs if self.deep_supervision else 2 * outputs


class PartlyDead(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.low_head.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x * 0)


class NeedsTwoSamples(Good):
    def forward(self, x: torch.Tensor) -> Any:
        if self.training:
            x = x / (x.std(0, keepdim=True) + 1)  # of one sample it is NaN
        return super().forward(x)


class FewerClassesOnOddSizes(Good):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return output[:, 1:] if isinstance(output, torch.Tensor) and x.shape[-1] % 2 else output


class OneTypeOfNumber(Good):
    def forward(self, x: torch.Tensor) -> Any:
        kept = torch.zeros_like(x)
        smoothed = self.stem[0](x)[:, : x.shape[1]]
        kept[x > 0] = smoothed[x > 0]
        return super().forward(kept)


class Locked(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


class Unpicklable(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scale = lambda x: x

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(self.scale(x))


class Circle(Good):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parents = [self]


class OtherWhenCompiled(Good):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(2 * x if torch.compiler.is_compiling() else x)


class OtherOnEveryRank(Good):
    """Changes its weights behind DDP's back."""

    def forward(self, x: torch.Tensor) -> Any:
        if torch.distributed.is_initialized() and self.training:
            with torch.no_grad():
                self.head.bias += torch.distributed.get_rank()
        return super().forward(x)


def _builder(network: type[Good]) -> Any:
    def build(input_channels: int, num_classes: int, deep_supervision: bool, conv_op: Any) -> nn.Module:
        return network(input_channels, num_classes, conv_op, deep_supervision)

    build.__name__ = build.__qualname__ = f"build_{network.__name__}"
    return build


NETWORKS = (
    LooksAtValues,
    UnusedParameter,
    ListWithoutDeepSupervision,
    ListWhileTraining,
    FlagOnlyWhenBuilt,
    Softmax,
    SoftmaxInEvaluation,
    SigmoidInEvaluation,
    SoftmaxOfASideOutput,
    LogSoftmax,
    Rectified,
    NotANumber,
    NotANumberInEvaluation,
    GradientNotANumber,
    HeadOnlyWithDeepSupervision,
    OtherInitialState,
    MixesSamples,
    OtherHeadForPrediction,
    PartlyDead,
    NeedsTwoSamples,
    FewerClassesOnOddSizes,
    OneTypeOfNumber,
    Locked,
    Unpicklable,
    Circle,
    OtherWhenCompiled,
    OtherOnEveryRank,
)
for _network in NETWORKS:  # nnU-Net finds a builder by its name in the module
    globals()[f"build_{_network.__name__}"] = _builder(_network)


# --- losses ----------------------------------------------------------------------------------------------------------


@nnplug.loss_traits(supports_ignore_label=True)
class GoodLoss(nn.Module):
    def __init__(self, context: nnplug.LossContext) -> None:
        super().__init__()
        self.ignore_index = -100 if context.ignore_label is None else context.ignore_label

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels = target[:, 0].long()
        counted = (labels != self.ignore_index).sum().clamp(min=1)
        summed = functional.cross_entropy(output, labels, ignore_index=self.ignore_index, reduction="sum")
        return summed / counted


class BlindToFalsePositives(nn.Module):
    """Cross-entropy inside the objects only."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels = target[:, 0].long()
        inside = (labels > 0).float()
        return (functional.cross_entropy(output, labels, reduction="none") * inside).sum() / inside.sum().clamp(min=1)


def sees_the_first_sample(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output[:1], target[:1, 0].long()) + 0 * output.sum()


def leaves_out_the_border(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output[..., 2:-2], target[:, 0, ..., 2:-2].long()) + 0 * output.sum()


def rewards_mistakes(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -functional.cross_entropy(output, target[:, 0].long())


def mean_over_no_voxel(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    labels = target[:, 0].long()
    everywhere = functional.cross_entropy(output, labels, reduction="none")
    return everywhere.mean() + everywhere[labels > 0].mean()


def without_graph(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output.detach(), target[:, 0].long())


@nnplug.loss_traits(supports_ignore_label=True)
def counts_ignored_voxels(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, target[:, 0].long().clamp(max=output.shape[1] - 1))


def logarithm_of_zero(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """In bfloat16 a sure probability is 1, and the logarithm of the rest not a number."""
    probability = output.softmax(1)
    wanted = functional.one_hot(target[:, 0].long(), output.shape[1]).movedim(-1, 1)
    return -(wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean()


@nnplug.loss_traits(handles_deep_supervision=True)
class LastOutputOnly(nn.Module):
    def forward(self, output: Any, target: Any) -> torch.Tensor:
        if isinstance(output, list):
            output, target = output[-1], target[-1]
        return functional.cross_entropy(output, target[:, 0].long())


class AppendsHalfTheLabels(SegOnlyTransform):
    def _apply_to_segmentation(self, segmentation: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([segmentation, (segmentation[:1] > 1).to(segmentation.dtype)])


class OtherFromTheWorkers(nn.Module):
    """Weighs the objects, but the channel from the workers misses one of them."""

    def target_transform(self) -> AppendsHalfTheLabels:
        return AppendsHalfTheLabels()

    def forward(self, output: torch.Tensor, target: torch.Tensor, extra: torch.Tensor | None) -> torch.Tensor:
        weight = 1 + ((target[:, 0] > 0) if extra is None else extra[:, 0]).float()
        return (weight * functional.cross_entropy(output, target[:, 0].long(), reduction="none")).mean()


# --- the rest --------------------------------------------------------------------------------------------------------


class GoodSampler(nnUNetDataLoader):
    """As nnU-Net's."""


class OutsideTheImage(nnUNetDataLoader):
    def get_bbox(self, *args: Any, **kwargs: Any) -> Any:
        lower, upper = super().get_bbox(*args, **kwargs)
        shift = [0, *[side // 2 for side in self.patch_size[1:]]]
        return [a - s for a, s in zip(lower, shift, strict=True)], [b - s for b, s in zip(upper, shift, strict=True)]


class ForgetsForeground(nnUNetDataLoader):
    def get_bbox(self, data_shape: Any, force_fg: bool, *args: Any, **kwargs: Any) -> Any:
        del force_fg
        return super().get_bbox(data_shape, False, *args, **kwargs)


class ForgetsSomeForeground(nnUNetDataLoader):
    """Not enough to be seen in the share of patches with foreground."""

    def get_bbox(self, data_shape: Any, force_fg: bool, *args: Any, **kwargs: Any) -> Any:
        return super().get_bbox(data_shape, force_fg and np.random.random() < 0.7, *args, **kwargs)


class PrefersTheMiddle(nnUNetDataLoader):
    """Also where foreground was forced."""

    def get_bbox(self, data_shape: Any, *args: Any, **kwargs: Any) -> Any:
        if np.random.random() < 0.7:
            return super().get_bbox(data_shape, *args, **kwargs)
        lower = [(side - of_patch) // 2 for side, of_patch in zip(data_shape, self.patch_size, strict=True)]
        return lower, [a + of_patch for a, of_patch in zip(lower, self.patch_size, strict=True)]


class OneCase(nnUNetDataLoader):
    def get_indices(self) -> list[str]:
        return [self.indices[0]] * self.batch_size


class LabelsOfElsewhere(nnUNetDataLoader):
    def generate_train_batch(self) -> Any:
        batch = super().generate_train_batch()
        batch["target"] = batch["target"].roll(1, -1)
        return batch


class ForgetsAnnotations(nnUNetDataLoader):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.has_ignore = False


def too_small_patches(*args: Any, **kwargs: Any) -> Any:
    data, batch_size, initial, *rest = args
    return nnUNetDataLoader(data, batch_size, [side - 2 for side in initial], *rest, **{**kwargs, "transforms": None})


class AddsALabel:
    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, **sample: Any) -> Any:
        done = self.transforms(**sample)
        for target in done["segmentation"]:
            target[0].view(-1)[:3] = 7
        return done


def adds_a_label(*args: Any, **kwargs: Any) -> AddsALabel:
    return AddsALabel(nnUNetTrainer.get_training_transforms(*args, **kwargs))


class NegativeRates:
    def __init__(self, optimizer: Any, initial_lr: float, num_epochs: int) -> None:
        self.optimizer, self.initial_lr, self.num_epochs = optimizer, initial_lr, num_epochs

    def step(self, epoch: int) -> None:
        self.set(self.initial_lr * (1 - 2 * epoch / self.num_epochs))

    def set(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class CountsItself(NegativeRates):
    """Falls with every call: a resumed training begins at the top again."""

    rate = 1.0

    def step(self, epoch: int) -> None:
        del epoch
        self.rate *= 0.9
        self.set(self.initial_lr * self.rate)


class DoesNothing(torch.optim.SGD):
    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> None:
        del closure
