"""A copy of a network that can be followed without computing, and without touching the network itself."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of DDP and torch.compile, in any order."""
    while (attribute := WRAPPERS.get(type(network).__name__)) is not None:
        network = getattr(network, attribute)
    return network


def replica_of(network: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy on the device, without hooks. On ``meta`` it takes no memory: the tensors are replaced before copying."""
    import torch

    memo: dict[int, Any] = {}
    if torch.device(device).type == "meta":
        for module in network.modules():
            for owner in (module._parameters, module._buffers, vars(module)):
                for tensor in owner.values():
                    if isinstance(tensor, torch.Tensor):
                        memo[id(tensor)] = _on_meta(tensor)
    replica = copy.deepcopy(network, memo).to(device)
    for module in replica.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return replica


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def is_about_meta(error: Exception) -> bool:
    """Whether a network failed because it looks at values, which tensors without data do not have."""
    return "meta" in str(error).lower() or isinstance(error, NotImplementedError)


def forked_random_state(device: torch.device | str) -> AbstractContextManager[None]:
    """Random numbers drawn inside change nothing outside. Leaves GPUs alone that are not the device."""
    import torch

    device = torch.device(device)
    if device.type in ("meta", "cpu"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
