"""What a training step of a network costs: counted on tensors without data, and its time on this machine."""

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
from nnplug.testing.outcomes import CheckSkipped
from nnplug.testing.subject import Subject, is_about_meta
from nnplug.training.worker_failures import available_memory

#: Samples in the batch that costs are given for.
REFERENCE_BATCH = 2


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


@dataclass(frozen=True)
class StepTime:
    """Seconds of a forward and a backward pass on this machine for a batch (B, C, *patch)."""

    input_shape: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s for a batch of {'x'.join(map(str, self.input_shape))}"


def costs(subject: Subject) -> Costs:
    """Parameters, multiply-adds and memory of a training step can be counted."""
    trainer = subject.planned
    shape = (REFERENCE_BATCH, len(trainer.dataset_json["channel_names"]), *trainer.configuration_manager.patch_size)
    try:
        with torch.device("meta"):
            network = trainer.build_for(shape[2:], trainer.enable_deep_supervision)
        return costs_of(network.train(), shape)
    except Exception as error:
        if not is_about_meta(error):
            raise
    return costs_of(trainer.build_for(shape[2:], trainer.enable_deep_supervision).train(), shape)


def step_time(subject: Subject) -> StepTime:
    """A training step of the size of real ones runs on this machine."""
    needed = costs(subject).peak_bytes
    available = available_memory()
    if available is not None and needed * 2 > available:
        raise CheckSkipped(f"needs about {bytes_text(needed)} of memory, {bytes_text(available)} are available")
    step = subject.step(REFERENCE_BATCH)
    return StepTime(tuple(subject.images(REFERENCE_BATCH).shape), step.seconds)


def costs_of(network: nn.Module, input_shape: tuple[int, ...]) -> Costs:
    """Count the costs of a network in its present mode; neither it nor its gradients are changed.

    Args:
        network: on the CPU or the device ``meta``. On ``meta`` nothing is computed.
        input_shape: (B, C, *patch).
    """
    device = next(network.parameters()).device
    summary = summarise(network, input_shape, device)
    return Costs(input_shape, summary.num_parameters, summary.multiply_adds, _peak_bytes(network, input_shape, device))


#: On the plans of real size.
ON_REFERENCE_PLANS = {"costs": costs, "step_time": step_time}


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
