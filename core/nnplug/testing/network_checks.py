"""Checks of the network, alone: what a network must do to be trained and predicted with in nnU-Net.

A check takes the subject, raises ``CheckFailed`` where the network fails, and may return a remark. Its docstring is
what it expects.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import torch
from torch import nn

from nnplug.networks import network as networks
from nnplug.networks.network import PatchRefusedError, Size, set_deep_supervision
from nnplug.networks.replica import forked_random_state, is_about_meta, replica_of
from nnplug.testing.outcomes import CheckFailed
from nnplug.testing.subject import Subject, as_list, probe

#: bfloat16 keeps 8 bits of a number, and errors add up over the layers.
AUTOCAST_TOLERANCE = 0.2


def builds(subject: Subject) -> str | None:
    """The trainer builds its network for the plan, and the network takes a patch and returns raw logits of its size."""
    assert subject.trainer.was_initialized
    return _adapted(subject)


def builds_dry(subject: Subject) -> str | None:
    """The trainer builds its network for the plan, and the network takes a patch and returns raw logits of its size."""
    assert subject.planned.outputs is not None
    return _adapted(subject)


def outputs(subject: Subject) -> str | None:
    """One tensor of the patch's size without deep supervision; a list with the full resolution first with it, the same
    however often it is switched, in training and in evaluation mode; targets have the sizes of the outputs."""
    trainer, patch = subject.trainer, subject.patch
    assert trainer.outputs is not None
    sizes, is_list = list(trainer.outputs.sizes), trainer.outputs.is_list
    with torch.device("meta"):
        built_off = trainer.build_for(patch, False)
    switches = ((True, True), (False, False), (True, False), (False, True))
    for network, built, tried in ((subject.network, "with", switches), (built_off, "without", switches[:2])):
        followed = _Followed(network, subject)
        for is_on, training in tried:
            found, found_list = followed.sizes(is_on, training)
            expected, expected_list = (sizes, is_list) if is_on else ([patch], False)
            if (found, found_list) != (expected, expected_list):
                mode = "training" if training else "evaluation"
                raise CheckFailed(
                    f"{_outputs_text(expected, expected_list)} when built {built} deep supervision, then switched "
                    f"{'on' if is_on else 'off'}, in {mode} mode",
                    _outputs_text(found, found_list),
                    _flag_hint(subject),
                )
    targets = [tuple(target.shape[2:]) for target in subject.targets(subject.labels(1))]
    if trainer.enable_deep_supervision and targets != sizes:
        raise CheckFailed(f"outputs of the targets' sizes {_spell(targets)}", _spell(sizes), _flag_hint(subject))
    if not is_list:
        return None
    untrained = " (the last has no weight in nnU-Net's deep supervision)" if len(sizes) > 1 else ""
    return f"{len(sizes)} outputs: {_spell(sizes)}{untrained}"


def state_dict(subject: Subject) -> None:
    """Weights of the network built with deep supervision load strictly into the one built without and back, and both
    predict the same."""
    network = subject.prepared_network(training=False, deep_supervision=False)
    other = subject.trainer.build_for(subject.patch, False)
    other.load_state_dict(network.state_dict(), strict=True)
    network.load_state_dict(other.state_dict(), strict=True)
    _same_outputs(subject, network, other.eval(), "the network built without deep supervision, with the weights")


def finite(subject: Subject) -> None:
    """Outputs and gradients are finite numbers in training mode, and outputs are in evaluation mode."""
    step = subject.step()
    _check_finite(subject, step.outputs, "training mode")
    for name, is_finite in step.gradients.items():
        if is_finite is False:
            raise CheckFailed("finite gradients", f"NaN or infinite ones of {name}", subject.where("network_builder"))
    with torch.no_grad():
        evaluated = subject.prepared_network(training=False, deep_supervision=False)(subject.images())
    _check_finite(subject, as_list(evaluated), "evaluation mode")


def raw_logits(subject: Subject) -> None:
    """The outputs are raw logits, in training and in evaluation mode: no activation follows the last layer."""
    with torch.no_grad():
        evaluated = as_list(subject.prepared_network(training=False, deep_supervision=False)(subject.images()))
    for training, outputs in ((True, subject.step().outputs), (False, evaluated)):
        for index, output in enumerate(outputs):
            found = _activation(subject, output, training, index)
            if found is not None:
                mode = f"output {index} in {'training' if training else 'evaluation'} mode has {found}"
                expected = "raw logits; nnU-Net and the loss apply the activation"
                raise CheckFailed(expected, mode, subject.where("network_builder"))


def _activation(subject: Subject, output: torch.Tensor, training: bool, index: int) -> str | None:
    is_positive, one = bool((output >= 0).all()), torch.ones(())
    if is_positive and torch.allclose(output.sum(1), one, atol=1e-4):
        return "probabilities that sum to 1 over the classes: a softmax"
    if torch.allclose(output.exp().sum(1), one, atol=1e-4):
        return "logarithms of probabilities that sum to 1 over the classes: a log-softmax"
    if is_positive and not _can_be_negative(subject, training, index):
        return "no negative value, also after steps that push them down: a sigmoid or ReLU"
    return None


def gradients(subject: Subject) -> str | None:
    """Every trainable parameter gets a gradient; one without stops training on several GPUs."""
    missing = [name for name, is_finite in subject.step().gradients.items() if is_finite is None]
    if missing:
        raise CheckFailed(
            "a gradient for every trainable parameter",
            f"none for {len(missing)}, the first: {missing[0]}. Drop what forward does not use, or freeze it",
            subject.where("network_builder"),
        )
    parameters = dict(subject.prepared_network(training=True).named_parameters())
    remarks = []
    if frozen := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
        share = sum(parameters[name].numel() for name in frozen) / sum(p.numel() for p in parameters.values())
        remarks.append(f"{share:.0%} of the parameters are frozen, the first: {frozen[0]}")
    if unmoved := subject.step().unmoved:
        remarks.append(f"the gradient is 0 in the first step for {len(unmoved)}, the first: {unmoved[0]}")
    return "; ".join(remarks) or None


def batch_of_one(subject: Subject) -> None:
    """A batch of one sample and one of two can be trained on; a prediction does not depend on the rest of its batch."""
    for batch_size in (2, 1):
        step = subject.step(batch_size)
        if step.outputs[0].shape[0] != batch_size:
            raise CheckFailed(f"outputs for a batch of {batch_size}", f"{step.outputs[0].shape[0]}", None)
        _check_finite(subject, step.outputs, f"training mode on a batch of {batch_size}")
    network, images = subject.prepared_network(training=False, deep_supervision=False), subject.images(2)
    with torch.no_grad():
        together, alone = network(images)[:1], network(images[:1])
    _check_same(subject, together, alone, "a sample alone and in a batch of 2, in evaluation mode", tolerance=1e-3)


def odd_sizes(subject: Subject) -> str | None:
    """Patches of odd sizes are taken, or refused with a size that fits."""
    trainer = subject.trainer
    odd = tuple(side - 1 + side % 2 for side in subject.patch)
    for is_on in (False, True):
        try:
            networks.dry_run(
                trainer.build_for,
                trainer=subject.resolved.name,
                num_input_channels=trainer.num_input_channels,
                num_classes=subject.num_classes,
                patch_size=odd,
                batch_size=2,
                deep_supervision=is_on,
            )
        except PatchRefusedError as refusal:
            return f"{_size(odd)} is refused, {_size(refusal.proposal)} is proposed"
    return None


def autocast(subject: Subject) -> None:
    """Forward and backward run under autocast (bfloat16 on the CPU) and give about what they give without."""
    network = subject.prepared_network(training=True)
    images = subject.images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = as_list(network(images))
    probe(found).backward()
    _check_finite(subject, found, "training mode under autocast")
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            where = subject.where("network_builder")
            raise CheckFailed("finite gradients under autocast", f"NaN or infinite ones of {name}", where)
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        network = subject.prepared_network(training=False, deep_supervision=False)
        full = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(images).float()
    error = ((half - full).norm() / full.norm().clamp(min=1e-6)).item()
    if error > AUTOCAST_TOLERANCE:
        raise CheckFailed(
            f"outputs under autocast within {AUTOCAST_TOLERANCE:.0%} of those in float32 (norm of the difference)",
            f"{error:.0%}",
            subject.where("network_builder"),
        )


def first_output(subject: Subject) -> str | None:
    """In evaluation mode the output without deep supervision is the first of those with it; else a remark tells so."""
    with torch.no_grad():
        trained = as_list(subject.prepared_network(training=False)(subject.images()))[0]
        predicted = subject.prepared_network(training=False, deep_supervision=False)(subject.images())
    difference = (trained - predicted).abs().max()
    if difference > 1e-3 * (1 + predicted.abs().max()):
        return f"predicts otherwise than its first trained output: a largest difference of {difference:.3g}"
    return None


def pickled(subject: Subject) -> None:
    """The network survives pickle: the copy predicts the same."""
    network = subject.prepared_network(training=False, deep_supervision=False)
    buffer = io.BytesIO()
    pickle.dump(network, buffer)
    buffer.seek(0)
    _same_outputs(subject, network, pickle.load(buffer), "the unpickled copy")


def deepcopied(subject: Subject) -> None:
    """The network survives copy.deepcopy: the copy predicts the same and shares no parameter."""
    network = subject.prepared_network(training=False, deep_supervision=False)
    copied = copy.deepcopy(network)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    shared = [name for name, parameter in copied.named_parameters() if parameter.data_ptr() in own]
    if shared:
        raise CheckFailed("a copy with parameters of its own", f"shared: {shared[0]}", subject.where("network_builder"))
    _same_outputs(subject, network, copied, "the copy")


def freed(subject: Subject) -> None:
    """A network that is no longer used is freed at once, without the garbage collector: GPU memory depends on it."""
    gc.collect()
    gc.disable()
    try:
        # a copy, because nnU-Net's way of building leaves circles of its own behind
        network = copy.deepcopy(subject.prepared_network(training=True))
        probe(as_list(network(subject.images(2)))).backward()
        watched = weakref.ref(network)
        del network
        is_alive = watched() is not None
    finally:
        gc.enable()
    if is_alive:
        where = subject.where("network_builder")
        raise CheckFailed("a network freed by reference counting", "it refers to itself in a circle", where)


#: On every plan, and those that one plan is enough for.
ON_EVERY_PLAN = {
    "builds": builds,
    "outputs": outputs,
    "raw_logits": raw_logits,
    "finite": finite,
    "gradients": gradients,
    "odd_sizes": odd_sizes,
}
ON_ONE_PLAN = {
    "state_dict": state_dict,
    "batch_of_one": batch_of_one,
    "first_output": first_output,
    "autocast": autocast,
    "pickle": pickled,
    "deepcopy": deepcopied,
    "freed": freed,
}
#: On data that change no more than numbers of channels.
ON_OTHER_DATA = {"builds": builds_dry}


def _adapted(subject: Subject) -> str | None:
    if subject.adapted_patch is None:
        return None
    return f"the plan's patch does not fit; {_size(subject.adapted_patch)} as nnplug proposes"


class _Followed:
    """A network on tensors without data, or a copy on the CPU where it looks at values."""

    def __init__(self, network: nn.Module, subject: Subject) -> None:
        self.network, self.subject = network, subject
        self.device = "meta"
        self.replica = replica_of(network, "meta")

    def sizes(self, is_on: bool, training: bool) -> tuple[list[Size], bool]:
        """Spatial size of every output, and whether they came as a list."""
        try:
            found = self._run(is_on, training)
        except Exception as error:
            if self.device == "cpu" or not is_about_meta(error):
                raise
            self.device = "cpu"
            self.replica = self.subject.trainer.build_for(self.subject.patch, False)
            if self.network is self.subject.network:
                self.replica = copy.deepcopy(self.network)
            found = self._run(is_on, training)
        return [tuple(output.shape[2:]) for output in as_list(found)], isinstance(found, list | tuple)

    def _run(self, is_on: bool, training: bool) -> Any:
        set_deep_supervision(self.replica, is_on)
        with torch.device(self.device), torch.no_grad(), forked_random_state(self.device):
            return self.replica.train(training)(self.subject.images(2).to(self.device))


def _outputs_text(sizes: list[Size], is_list: bool) -> str:
    return f"{'a list with' if is_list else 'one tensor of'} {_spell(sizes)}"


def _flag_hint(subject: Subject) -> str:
    return f"the flag deep_supervision of the network or its decoder; {subject.where('network_builder')}"


def _same_outputs(subject: Subject, network: nn.Module, other: nn.Module, what: str) -> None:
    images = subject.images()
    with torch.no_grad():
        _check_same(subject, network(images), other(images), what)


def _check_same(subject: Subject, ours: torch.Tensor, theirs: Any, what: str, tolerance: float = 1e-4) -> None:
    if not isinstance(theirs, torch.Tensor) or not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
        is_tensor = isinstance(theirs, torch.Tensor)
        found = f"a largest difference of {(ours - theirs).abs().max():.3g}" if is_tensor else "a list"
        raise CheckFailed(f"the same prediction from {what}", found, subject.where("network_builder"))


def _check_finite(subject: Subject, found: list[torch.Tensor], mode: str) -> None:
    for index, output in enumerate(found):
        if not torch.isfinite(output).all():
            share = 1 - torch.isfinite(output).float().mean().item()
            raise CheckFailed(
                f"finite outputs in {mode}",
                f"output {index} has {share:.0%} NaN or infinite values",
                subject.where("network_builder"),
            )


def _can_be_negative(subject: Subject, training: bool, index: int) -> bool:
    """Whether steps down the mean of an output get it below zero, which no bound activation allows."""
    deep_supervision = None if training else False
    network = copy.deepcopy(subject.prepared_network(training=training, deep_supervision=deep_supervision))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(20):
        output = as_list(network(subject.images()))[index]
        if (output < 0).any():
            return True
        optimizer.zero_grad()
        output.mean().backward()
        optimizer.step()
    return False


def _size(size: Any) -> str:
    return "x".join(map(str, size))


def _spell(sizes: list[Size]) -> str:
    return ", ".join(map(_size, sizes))
