"""How fine and how wide the Ki branch is: from the plan, and from what it may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

from nnplug import NnplugError

from nnplug_kiunet.blocks import Size


@dataclass(frozen=True)
class KiBranch:
    """The shape of the Ki branch.

    Attributes:
        growth: factor by axis at each of its encoder stages; 1 where a stage keeps the resolution.
        features: channels at each level, the patch's own resolution first; one more than there are stages.
    """

    growth: tuple[Size, ...]
    features: tuple[int, ...]

    @property
    def resolution(self) -> Size:
        """Its finest resolution by axis, as a factor of the patch's."""
        return _product(self.growth)

    @property
    def largest_map(self) -> int:
        """In channels of the patch's size. A decoder stage convolves before it shrinks."""
        sizes = [math.prod(_product(self.growth[: stage + 1])) for stage in range(len(self.growth))]
        widths = [max(pair) for pair in pairwise(self.features)]
        return max(size * width for size, width in zip(sizes, widths, strict=True))


def plan_ki_branch(
    strides: Sequence[Size],
    first_features: int,
    *,
    num_ki_stages: int,
    max_ki_growth: int,
    max_ki_memory: float,
    ki_features: int | Sequence[int] | None = None,
) -> KiBranch:
    """Let the Ki branch grow by the strides of the plan, as far as it may.

    Args:
        strides: of the plan's stages, the first included.
        first_features: channels of the plan's first stage.
        num_ki_stages: encoder stages of the branch; not more than the plan has.
        max_ki_growth: how much finer than the patch it may become on an axis, 2 or more.
        max_ki_memory: size of its largest feature map, in channels of the patch's size.
        ki_features: channels by level, or one number for all. None: as many for all as ``max_ki_memory`` allows, not
            more than ``first_features``.

    Raises:
        NnplugError: nothing to grow by, or a branch that takes more memory than it may.
    """
    if isinstance(max_ki_memory, bool) or not isinstance(max_ki_memory, int | float) or not max_ki_memory > 0:
        raise NnplugError(f"needs a max_ki_memory above 0, not {max_ki_memory!r}.")
    num_stages = min(num_ki_stages, len(strides) - 1)
    growth = _growth(strides, num_stages, max_ki_growth)
    if ki_features is None:
        ki_features = max(1, int(min(max_ki_memory / math.prod(_product(growth)), first_features)))
    if not isinstance(ki_features, Sequence):
        ki_features = [ki_features] * (num_stages + 1)
    if len(ki_features) != num_stages + 1 or not all(map(is_count, ki_features)):
        raise NnplugError(
            f"needs {num_stages + 1} whole numbers from 1 on as ki_features, one a level of the Ki branch; "
            f"got {list(ki_features)}."
        )
    branch = KiBranch(growth, tuple(ki_features))
    if branch.largest_map > max_ki_memory:
        size = "x".join(map(str, branch.resolution))
        raise NnplugError(
            f"needs max_ki_memory={branch.largest_map} for a Ki branch of {max(branch.features)} channels that grows "
            f"{size}-fold; it is {max_ki_memory}. Set that, or a lower max_ki_growth."
        )
    return branch


def is_count(value: object, least: int = 1) -> bool:
    """Whether a setting is a whole number from ``least`` on."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _growth(strides: Sequence[Size], num_stages: int, max_ki_growth: int) -> tuple[Size, ...]:
    # the paper's branch is finer than the image from its first stage on, also where a plan begins without pooling
    pooling = [stride for stride in strides if math.prod(stride) > 1]
    if not pooling:
        raise NnplugError("needs a plan with a stride above 1: the Ki branch grows where the other one shrinks.")
    reached = (1,) * len(pooling[0])
    growth = []
    for stride in [*pooling, *[reached] * num_stages][:num_stages]:
        growth.append(tuple(min(s, max_ki_growth // r) for s, r in zip(stride, reached, strict=True)))
        reached = _product([reached, growth[-1]])
    return tuple(growth)


def _product(factors: Sequence[Size]) -> Size:
    return tuple(math.prod(axis) for axis in zip(*factors, strict=True))
