"""Networks and losses as a plugin's author may write them; importable, as nnU-Net must find builders again."""

from __future__ import annotations

from typing import Any

import nnplug
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn


class TwoConvolutions(nn.Module):
    """No decoder, one output."""

    def __init__(self, num_channels: int, num_classes: int, dims: int, width: int = 4) -> None:
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.body = nn.Sequential(
            conv(num_channels, width, 3, padding=1), nn.ReLU(), conv(width, num_classes, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def build_my_custom_network(input_channels: int, num_classes: int, **kwargs: Any) -> nn.Module:
    return TwoConvolutions(input_channels, num_classes, 3 if "3d" in kwargs["conv_op"].__name__ else 2)


def build_with_width(input_channels: int, num_classes: int, deep_supervision: bool, width: int = 4) -> nn.Module:
    assert deep_supervision in (True, False)
    return TwoConvolutions(input_channels, num_classes, 3, width)


class Pyramid(TwoConvolutions):
    """Deep supervision with a flag on the network itself and sizes of its own: 1 and 1/2 of an axis."""

    def __init__(self, *args: Any, deep_supervision: bool) -> None:
        super().__init__(*args)
        self.deep_supervision = deep_supervision

    def forward(self, x: torch.Tensor) -> Any:
        full = self.body(x)
        return [full, nn.functional.max_pool3d(full, (1, 2, 2))] if self.deep_supervision else full


def build_pyramid(input_channels: int, num_classes: int, deep_supervision: bool) -> nn.Module:
    return Pyramid(input_channels, num_classes, 3, deep_supervision=deep_supervision)


class DecidedWhenBuilt(TwoConvolutions):
    """A list whenever it was built for deep supervision: there is no flag that validation could switch off."""

    def __init__(self, *args: Any, deep_supervision: bool) -> None:
        super().__init__(*args)
        self.returns_list = deep_supervision

    def forward(self, x: torch.Tensor) -> Any:
        full = self.body(x)
        return [full, nn.functional.max_pool3d(full, 2)] if self.returns_list else full


def build_without_switch(input_channels: int, num_classes: int, deep_supervision: bool) -> nn.Module:
    return DecidedWhenBuilt(input_channels, num_classes, 3, deep_supervision=deep_supervision)


class HeadsOnDemand(Pyramid):
    """Its second head is only there when it was built for deep supervision."""

    def __init__(self, *args: Any, deep_supervision: bool) -> None:
        super().__init__(*args, deep_supervision=deep_supervision)
        if deep_supervision:
            self.low_head = nn.Conv3d(args[1], args[1], 1)


def build_heads_on_demand(input_channels: int, num_classes: int, deep_supervision: bool) -> nn.Module:
    return HeadsOnDemand(input_channels, num_classes, 3, deep_supervision=deep_supervision)


def build_too_few_classes(input_channels: int, num_classes: int, **_: Any) -> nn.Module:
    return TwoConvolutions(input_channels, num_classes - 1, 3)


class _Growing(TwoConvolutions):
    def forward(self, x: torch.Tensor) -> Any:
        full = super().forward(x)
        return [nn.functional.max_pool3d(full, 2), full]


class _Empty(TwoConvolutions):
    def forward(self, _: torch.Tensor) -> Any:
        return []


def build_a_number(deep_supervision: bool, **_: Any) -> int:
    return 3


def build_empty(input_channels: int, num_classes: int, **_: Any) -> nn.Module:
    return _Empty(input_channels, num_classes, 3)


def build_raises(**_: Any) -> nn.Module:
    raise ValueError("width must be even")


def build_without_flag(input_channels: int, num_classes: int) -> nn.Module:
    return TwoConvolutions(input_channels, num_classes, 3)


class LooksAtValues(TwoConvolutions):
    """Can not run on meta tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum().item() >= 0 else -x)


def build_looks_at_values(input_channels: int, num_classes: int, **_: Any) -> nn.Module:
    return LooksAtValues(input_channels, num_classes, 3)


class MyLoss(nn.Module):
    """Cross-entropy on label maps; remembers what it was given."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.target_shape: tuple[int, ...] = ()

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.target_shape = tuple(target.shape)
        return self.weight * nn.functional.cross_entropy(output, target[:, 0].long())


@nnplug.loss_traits(target_format="one_hot")
class OneHotLoss(MyLoss):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.target_shape = tuple(target.shape)
        assert torch.equal(target.sum(1), torch.ones_like(target[:, 0]))
        return self.weight * nn.functional.cross_entropy(output, target)


def make_my_loss(context: nnplug.LossContext, weight: float = 1.0) -> nn.Module:
    assert context.num_classes == 3
    return MyLoss(weight)


def plain_function(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target[:, 0].long())


class CountingLoader(nnUNetDataLoader):
    """nnU-Net's sampler under another name."""


class WithOwnLoaders(nnUNetTrainer):
    """Fetches its data in a way of its own."""

    def get_dataloaders(self) -> Any:
        raise AssertionError("the config has a sampler")
