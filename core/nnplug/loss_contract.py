"""What a loss says of itself, and what it is told. Torch-free, so that plug-ins can import it when they are listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LossTraits:
    """What a loss can take. Given as attributes of the loss, its class or its factory; see :func:`loss_traits`.

    Attributes:
        target_format: ``"label_map"``: the target is (B, 1, *spatial) with label values; ``"one_hot"``:
            (B, C, *spatial) float with one channel a class.
        handles_deep_supervision: the loss is called with the lists of outputs and targets itself. Otherwise it is
            called once per output and the values are weighted as nnU-Net does (1, 1/2, 1/4, ..., last 0, normalised).
        supports_ignore_label: ignored voxels are handled by the loss: a label map then holds the value
            ``context.ignore_label``, a one-hot target has one more last channel that is 1 where voxels are ignored.
        supports_regions: the loss can be used with region-based training: the target then has one channel a region
            (plus the ignore channel), the classes overlap and the activation is a sigmoid.
        target_transform: a callable without arguments, such as a method of the loss, that returns a transform
            (batchgeneratorsv2) which appends channels to a training segmentation, computed by the data workers. The
            loss is then called with a third argument: those channels (B, E, *spatial), or None where a batch comes
            without, as in validation.
    """

    target_format: Literal["label_map", "one_hot"] = "label_map"
    handles_deep_supervision: bool = False
    supports_ignore_label: bool = False
    supports_regions: bool = False
    target_transform: Callable[[], Any] | None = None


def loss_traits(
    *,
    target_format: Literal["label_map", "one_hot"] = "label_map",
    handles_deep_supervision: bool = False,
    supports_ignore_label: bool = False,
    supports_regions: bool = False,
) -> Callable[[T], T]:
    """Decorate a loss class or factory with what it can take (see :class:`LossTraits`).

    ``target_transform`` is none of them: it depends on the settings of a loss and so is a method of it.

    Example:
        >>> @loss_traits(target_format="one_hot")
        ... def my_loss(context):
        ...     return MyLoss(context.num_classes)
    """
    traits = {
        "target_format": target_format,
        "handles_deep_supervision": handles_deep_supervision,
        "supports_ignore_label": supports_ignore_label,
        "supports_regions": supports_regions,
    }

    def mark(loss: T) -> T:
        for name, value in traits.items():
            setattr(loss, name, value)
        return loss

    return mark


def traits_of(*sources: Any) -> LossTraits:
    """The traits declared on the first of the sources (loss, factory) that has them, field by field."""
    values = {}
    for field in fields(LossTraits):
        for source in sources:
            if hasattr(source, field.name):
                values[field.name] = getattr(source, field.name)
                break
    return LossTraits(**values)


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What the data set and the run tell a loss; given to a factory with a parameter named ``context``.

    Attributes:
        num_classes: channels of the network's output (background included, or the number of regions).
        spatial_dims: 2 or 3.
        ignore_label: value of ignored voxels in a label map, None where the data set has none.
        has_regions: region-based training: sigmoid instead of softmax, one target channel a region.
        batch_dice: nnU-Net's plan says that Dice is computed over the batch and not per sample.
        is_ddp: training runs on several processes.
        num_deep_supervision_outputs: outputs of the network in training; 1 without deep supervision.
        supervision_weights: nnU-Net's weight of each of these outputs, for a loss that handles deep supervision itself;
            they sum to 1.
    """

    num_classes: int
    spatial_dims: int
    ignore_label: int | None = None
    has_regions: bool = False
    batch_dice: bool = False
    is_ddp: bool = False
    num_deep_supervision_outputs: int = 1
    supervision_weights: tuple[float, ...] = (1.0,)
