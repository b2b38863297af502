"""Which patch sizes a network takes, checked before its first layer so that the error names the rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PatchRule:
    """A forward pre-hook that raises ValueError for patches the network can not take.

    Attributes:
        network: its name, for the message.
        divisor: voxels per axis that make one voxel of the coarsest level.
        must_divide: every side must be a multiple of ``divisor`` (otherwise only not smaller than it).
        min_coarse_voxels: voxels that the coarsest level needs; 2 where a norm takes the statistics of one sample.
        only: the one size that the network was built for, where its position embedding fixes it.
    """

    network: str
    divisor: tuple[int, ...]
    must_divide: bool = True
    min_coarse_voxels: int = 1
    only: tuple[int, ...] | None = None

    def check(self, size: Sequence[int]) -> None:
        """Raise ValueError where ``size`` (voxels per axis) does not fit.

        Nothing is compared with a tensor's values, so the check also holds on meta tensors.
        """
        if self.must_divide and any(side % d for side, d in zip(size, self.divisor, strict=True)):
            raise ValueError(f"{self.network} needs sides that are multiples of {self._text(self.divisor)}")
        if any(side < d for side, d in zip(size, self.divisor, strict=True)):
            raise ValueError(f"{self.network} needs sides of at least {self._text(self.divisor)}")
        coarse = math.prod(side // d for side, d in zip(size, self.divisor, strict=True))
        if coarse < self.min_coarse_voxels:
            larger = self._text([2 * d for d in self.divisor])
            raise ValueError(f"{self.network} needs a side of at least {larger}: its coarsest level has one voxel")
        if self.only is not None and tuple(size) != self.only:
            built = "x".join(map(str, self.only))
            raise ValueError(f"{self.network} was built for patches of {built} and takes no other size")

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.check(inputs[0].shape[2:])

    @staticmethod
    def _text(size: Sequence[int]) -> str:
        return str(size[0]) if len(set(size)) == 1 else "x".join(map(str, size))


def with_patch_rule(network: nn.Module, rule: PatchRule) -> nn.Module:
    """Let the network check its input with ``rule``, and carry it as ``network.patch_rule``."""
    network.patch_rule = rule
    network.register_forward_pre_hook(rule)
    return network


def product_of_strides(strides: Sequence[Sequence[int] | int], dims: int) -> tuple[int, ...]:
    """Voxels per axis that one voxel of the coarsest level stands for."""
    per_axis = [(stride,) * dims if isinstance(stride, int) else tuple(stride) for stride in strides]
    return tuple(math.prod(axis) for axis in zip(*per_axis, strict=True))
