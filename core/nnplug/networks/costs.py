"""What a training step of a network costs, counted on tensors without data."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from nnplug.networks.replica import forked_random_state, replica_of
from nnplug.networks.report import bytes_text, count_text, summarise


@dataclass(frozen=True)
class Costs:
    """The costs of a network on one plan.

    Attributes:
        input_shape: (B, C, *patch) of the batch they are for.
        num_parameters: trainable and frozen.
        multiply_adds: of a forward pass; None if it could not be followed.
        peak_bytes: most memory that tensors take at once during a forward and a backward pass in float32: parameters,
            gradients, activations. Neither the optimiser's state nor what libraries need besides is in it.
    """

    input_shape: tuple[int, ...]
    num_parameters: int
    multiply_adds: int | None
    peak_bytes: int

    def __str__(self) -> str:
        adds = "unknown" if self.multiply_adds is None else count_text(self.multiply_adds)
        shape = "x".join(map(str, self.input_shape))
        return (
            f"{count_text(self.num_parameters)} parameters, {adds} multiply-adds, {bytes_text(self.peak_bytes)} for a "
            f"batch of {shape}"
        )


def costs_of(network: nn.Module, input_shape: tuple[int, ...]) -> Costs:
    """Count the costs of a network in its present mode; neither it nor its gradients are changed.

    Args:
        network: on the CPU or the device ``meta``. On ``meta`` nothing is computed.
        input_shape: (B, C, *patch).
    """
    device = next(network.parameters()).device
    summary = summarise(network, input_shape, device)
    return Costs(input_shape, summary.num_parameters, summary.multiply_adds, _peak_bytes(network, input_shape, device))


def _peak_bytes(network: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> int:
    replica = replica_of(network, device)
    with torch.device(device), forked_random_state(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the meta device can not tell how fused attention would be computed
        with sdpa_kernel(SDPBackend.MATH), _LiveBytes() as live:
            for tensor in (*replica.parameters(), *replica.buffers()):
                live.add(tensor)
            outputs = replica(torch.zeros(input_shape))
            outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
            torch.stack([output.float().mean() for output in outputs]).sum().backward()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that are alive, as operations make them and as they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result
