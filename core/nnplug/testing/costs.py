"""What a training step of a network costs: counted, and its time on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nnplug.networks.costs import Costs, costs_of
from nnplug.networks.replica import is_about_meta
from nnplug.networks.report import bytes_text
from nnplug.testing.outcomes import CheckSkipped
from nnplug.testing.subject import Subject
from nnplug.training.worker_failures import available_memory

#: Samples in the batch that costs are given for.
REFERENCE_BATCH = 2


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


#: On the plans of real size.
ON_REFERENCE_PLANS = {"costs": costs, "step_time": step_time}
