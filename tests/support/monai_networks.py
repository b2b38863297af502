"""MONAI's networks in tiny, built the way stock nnU-Net builds them from a plans file."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

TINY = {
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
    "segresnetds": {"init_filters": 4, "blocks_down": [1, 1, 1, 1]},
    "swinunetr": {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2},
    "attentionunet": {},
    "dynunet": {},
    "mednext": {"init_filters": 4},
    "basicunetplusplus": {"features": [4, 4, 4, 4, 4, 4]},
    "vnet": {},
}
SUPERVISED = ("segresnetds", "dynunet", "mednext", "basicunetplusplus")
STRIDES = {
    "isotropic": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "anisotropic": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def plan_of(dims: int, strides: str = "isotropic", **changes: Any) -> dict[str, Any]:
    """``arch_kwargs`` as nnU-Net's planner writes them."""
    taken = [stride[-dims:] for stride in STRIDES[strides]]
    kernels = [[1 if s == 1 and i == 1 else 3 for s in stride] for i, stride in enumerate(taken)]
    arch_kwargs = {
        "n_stages": 4,
        "features_per_stage": [4, 8, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": kernels,
        "strides": taken,
        "n_conv_per_stage": [2, 2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return arch_kwargs | changes


def build(
    name: str,
    patch: tuple[int, ...],
    *,
    deep_supervision: bool = False,
    num_channels: int = 1,
    num_classes: int = 3,
    plan: dict[str, Any] | None = None,
    **settings: Any,
) -> nn.Module:
    """Build as stock nnU-Net does: by dotted name, from JSON that holds only what the builder takes."""
    module = importlib.import_module(f"nnplug_monai.networks.{name}")
    accepted = inspect.signature(getattr(module, f"build_{name}")).parameters
    plan = plan_of(len(patch)) if plan is None else plan
    arch_kwargs = {key: value for key, value in (plan | {"patch_size": list(patch)}).items() if key in accepted}
    return get_network_from_plans(
        f"nnplug_monai.networks.{name}.build_{name}",
        json.loads(json.dumps(arch_kwargs | settings)),
        [key for key in ("conv_op", "norm_op", "dropout_op", "nonlin") if key in arch_kwargs],
        num_channels,
        num_classes,
        deep_supervision=deep_supervision,
    )


def build_tiny(name: str, patch: tuple[int, ...], **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, patch, **TINY[name], **kwargs)


def shapes_of(output: torch.Tensor | list[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in (output if isinstance(output, list) else [output])]


class Case(NamedTuple):
    name: str
    patch: tuple[int, ...]
    num_channels: int
    num_classes: int
    extra_outputs: list[tuple[int, ...]]
    """Spatial sizes of the outputs after the first with deep supervision."""


CASES = [
    Case("segresnet", (24, 16), 3, 2, []),
    Case("segresnet", (16, 24, 16), 1, 3, []),
    Case("segresnetds", (24, 16), 3, 2, [(12, 8), (6, 4)]),
    Case("segresnetds", (16, 24, 16), 1, 3, [(8, 12, 8), (4, 6, 4)]),
    Case("swinunetr", (64, 32), 3, 2, []),
    Case("swinunetr", (32, 64, 32), 1, 3, []),
    Case("unetr", (32, 16), 3, 2, []),
    Case("unetr", (16, 32, 16), 1, 3, []),
    Case("attentionunet", (24, 16), 3, 2, []),
    Case("attentionunet", (16, 24, 16), 1, 3, []),
    Case("dynunet", (24, 16), 3, 2, [(12, 8), (6, 4)]),
    Case("dynunet", (16, 24, 16), 1, 3, [(8, 12, 8), (4, 6, 4)]),
    Case("mednext", (32, 16), 3, 2, [(16, 8), (8, 4), (4, 2), (2, 1)]),
    Case("mednext", (16, 32, 16), 1, 3, [(8, 16, 8), (4, 8, 4), (2, 4, 2), (1, 2, 1)]),
    Case("basicunetplusplus", (35, 18), 3, 2, [(35, 18)] * 3),
    Case("basicunetplusplus", (17, 33, 16), 1, 3, [(17, 33, 16)] * 3),
    Case("vnet", (32, 16), 4, 2, []),
    Case("vnet", (16, 32, 16), 1, 3, []),
]
SUPERVISED_CASES = [case for case in CASES if case.name in SUPERVISED]
IN_2D = [case for case in SUPERVISED_CASES if len(case.patch) == 2]


def case_id(case: Case) -> str:
    return f"{case.name}-{len(case.patch)}d"


def image_of(case: Case, batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, case.num_channels, *case.patch, generator=torch.Generator().manual_seed(1))


def build_case(case: Case, **kwargs: Any) -> nn.Module:
    return build_tiny(case.name, case.patch, num_channels=case.num_channels, num_classes=case.num_classes, **kwargs)
