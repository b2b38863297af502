"""The network of a config: written into the plans, tried on meta tensors before anything is spent on it.

nnU-Net builds its network from ``plans["configurations"][c]["architecture"]``. A builder that is written there is found
by stock nnU-Net too, so the model folder needs no nnplug to be predicted with.

Axis letters: B batch, C channels or classes; spatial sizes are in voxels, in the plan's axis order.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import math
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch as replaced

import nnunetv2
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

import nnplug
from nnplug.composition.checks import did_you_mean
from nnplug.composition.component import Component
from nnplug.composition.references import import_string, load
from nnplug.composition.resolved import ResolvedConfig
from nnplug.datasets import check_configuration
from nnplug.errors import NnplugError
from nnplug.networks.replica import is_about_meta

Size = tuple[int, ...]
BuildNetwork = Callable[[Size, bool], nn.Module]

_LARGEST_TRIED = 128**3  # voxels; a network that looks at values is tried with memory
_GIVEN = ("input_channels", "num_classes", "deep_supervision", "patch_size")  # to a builder, by nnU-Net and nnplug


class PatchRefusedError(NnplugError):
    """The network does not take the patch.

    Attributes:
        proposal: a size that it takes, in voxels.
    """

    def __init__(self, message: str, proposal: Size) -> None:
        super().__init__(message)
        self.proposal = proposal


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network returned in the dry run.

    Attributes:
        sizes: spatial size of each output in voxels, full resolution first.
        is_list: the network returned a list (deep supervision), not one tensor.
        weights: name and shape of everything that a checkpoint of it holds.
    """

    sizes: tuple[Size, ...]
    is_list: bool
    weights: Mapping[str, Size]


# --- plans -----------------------------------------------------------------------------------------------------------


def configure_plans(plans: Mapping[str, Any], configuration: str, resolved: ResolvedConfig) -> dict[str, Any]:
    """A copy of the plans in which the configuration holds what the config sets.

    Args:
        plans: nnU-Net's plans as read from JSON.
        configuration: its configuration to train, for example ``3d_fullres``.
        resolved: the trainer.

    Returns:
        New plans. Where the config sets nothing that the plans hold, they equal the old ones.

    Raises:
        NnplugError: unknown configuration, a dimension the trainer does not work in, a patch size of another dimension,
            a builder that nnU-Net could not find again.
    """
    new = deepcopy(dict(plans))
    check_configuration(new, configuration)
    config = resolved.config
    # inherits_from is resolved before anything is merged, or a merged mapping would replace the inherited one
    settings = deepcopy(PlansManager(deepcopy(new)).get_configuration(configuration).configuration)
    dims = len(settings["patch_size"])
    if config.spatial_dims is not None and dims not in config.spatial_dims:
        can = " and ".join(f"{d}D" for d in config.spatial_dims)
        raise NnplugError(f"'{resolved.name}' works in {can} only; configuration '{configuration}' is {dims}D.")
    before = deepcopy(settings)
    if config.plans:
        settings = deep_merge(settings, config.plans)
    if config.batch_size is not None:
        settings["batch_size"] = config.batch_size
    if config.patch_size is not None:
        if len(config.patch_size) != dims:
            text = "x".join(map(str, config.patch_size))
            raise NnplugError(
                f"patch_size={text} has {len(config.patch_size)} axes; configuration '{configuration}' is {dims}D."
            )
        settings["patch_size"] = list(config.patch_size)
    if config.network_builder is not None:
        _write_builder(settings, config.network_builder, resolved)
    if settings != before:
        settings.pop("inherits_from", None)
        new["configurations"][configuration] = settings
    return new


def deep_merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings recursively; other values of ``update`` replace those of ``base``."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _write_builder(settings: dict[str, Any], component: Component, resolved: ResolvedConfig) -> None:
    """Put the builder and the arguments it accepts into ``settings["architecture"]``."""
    builder = load(component.target, trusted=True)
    reference = import_string(builder)
    name = reference.replace(":", ".")
    if name.rsplit(".", 1)[1] in _fallback_names():
        raise NnplugError(
            f"network_builder {reference} of '{resolved.name}' has the name of something in "
            "dynamic_network_architectures: stock nnU-Net would build that one where the plugin is missing. "
            "Rename the builder."
        )
    architecture = settings["architecture"]
    arch_kwargs = deep_merge(architecture["arch_kwargs"], component.kwargs)
    accepted, takes_any = _parameters(builder)
    if not takes_any and "deep_supervision" not in accepted:
        raise NnplugError(
            f"network_builder {reference} must accept 'deep_supervision' (or **kwargs): nnU-Net always passes it."
        )
    unknown = [key for key in component.kwargs if key not in accepted and not takes_any]
    if unknown:
        settable = [key for key in accepted if key not in _GIVEN]
        raise NnplugError(
            f"network_builder {reference} has no setting '{unknown[0]}'{did_you_mean(unknown[0], settable)}. "
            f"It takes: {', '.join(settable)}."
        )
    set_by_parts = (resolved.config.plans or {}).get("architecture", {}).get("arch_kwargs", {})
    twice = [key for key in component.kwargs if key in set_by_parts]
    if twice:
        raise NnplugError(
            f"'{resolved.name}' sets plans.architecture.arch_kwargs.{twice[0]} and network_builder.{twice[0]}, which "
            "are one argument of the network. Set one of them."
        )
    unused = [key for key in set_by_parts if key not in accepted and not takes_any]
    if unused:
        raise NnplugError(
            f"'{resolved.name}' sets plans.architecture.arch_kwargs.{unused[0]}, which network_builder {reference} "
            f"does not take: it would change nothing. It takes: {', '.join(accepted)}."
        )
    if "patch_size" in accepted:
        arch_kwargs["patch_size"] = list(settings["patch_size"])
    if not takes_any:
        arch_kwargs = {key: value for key, value in arch_kwargs.items() if key in accepted}
    try:
        arch_kwargs = json.loads(json.dumps(arch_kwargs))
    except TypeError as error:
        raise NnplugError(
            f"network_builder {reference}: settings travel in plans.json and must be plain values ({error})."
        ) from None
    settings["architecture"] = {
        "network_class_name": name,
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": [key for key in architecture["_kw_requires_import"] if key in arch_kwargs],
    }


def _parameters(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names that can be passed by keyword, and whether ``**kwargs`` takes any."""
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that a callable takes by keyword."""
    return _parameters(function)[0]


def call_accepted(function: Callable[..., Any], *args: Any, offered: Mapping[str, Any], **kwargs: Any) -> Any:
    """Call with ``args`` and ``kwargs``, and with those of the offered arguments that the function takes."""
    accepted, takes_any = _parameters(function)
    taken = {key: value for key, value in offered.items() if key in accepted or takes_any}
    return function(*args, **{**taken, **kwargs})


@cache
def _fallback_names() -> frozenset[str]:
    """Every name that stock nnU-Net could find in dynamic_network_architectures, read without importing it."""
    spec = importlib.util.find_spec("dynamic_network_architectures")
    assert spec is not None, "nnunetv2 depends on it"
    assert spec.submodule_search_locations is not None, "it is a package"
    names: set[str] = set()
    for path in Path(spec.submodule_search_locations[0], "architectures").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return frozenset(names)


# --- dry run ---------------------------------------------------------------------------------------------------------


def dry_run(
    build: BuildNetwork,
    *,
    trainer: str,
    num_input_channels: int,
    num_classes: int,
    patch_size: Size,
    batch_size: int,
    deep_supervision: bool,
) -> NetworkOutputs:
    """Run the network once on tensors without data and check what it returns.

    Args:
        build: makes the network for a patch size, with or without deep supervision.
        trainer: its name, for the messages.
        num_input_channels: channels of the input.
        num_classes: channels that every output must have.
        patch_size: spatial size in voxels.
        batch_size: samples in the batch.
        deep_supervision: whether the training wants several outputs.

    Raises:
        PatchRefusedError: it does not take the patch, and a size that fits was found.
        NnplugError: it can not be built, takes no patch, or returns something else than raw logits of shape
            (B, C, *patch).
    """

    def attempt(patch: Size) -> NetworkOutputs:
        shape = (batch_size, num_input_channels, *patch)
        network, output = _run_once(lambda: build(patch, deep_supervision), shape)
        sizes = _check_outputs(output, batch_size, num_classes, patch)
        is_list = isinstance(output, list | tuple)
        if is_list and deep_supervision:
            _check_switch(lambda: build(patch, True), shape)
        weights = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        return NetworkOutputs(sizes=sizes, is_list=is_list, weights=weights)

    text = "x".join(map(str, patch_size))
    try:
        return attempt(patch_size)
    except NnplugError as error:
        raise NnplugError(f"The network of '{trainer}' {error}") from None
    except Exception as error:
        proposal = _fitting_patch(attempt, patch_size)
        reason = _first_line(error)
        if proposal is None:
            place = _place(error)
            raise NnplugError(f"The network of '{trainer}' fails on a patch of {text}: {reason}{place}") from error
        fits = "x".join(map(str, proposal))
        raise PatchRefusedError(
            f"The network of '{trainer}' can not take a patch of {text} ({reason}). "
            f"A size that fits: +patch_size={fits}",
            proposal,
        ) from error


def _run_once(build: Callable[[], nn.Module], shape: Size) -> tuple[nn.Module, Any]:
    """The network, and what it returns for tensors of this shape."""
    try:
        # the context makes tensors that the network creates by itself meta tensors as well
        with torch.device("meta"), torch.no_grad(), _without_ddp():
            network = _build_module(build).train()
            return network, network(torch.empty(shape))
    except Exception as error:
        if not is_about_meta(error):
            raise
    # a network that looks at values can not run on meta tensors: one sample on the CPU tells the same
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        network = _build_module(build).eval()
        output = network(torch.zeros((1, *shape[1:])))
    tensors = output if isinstance(output, list | tuple) else [output]
    grown = [t.expand(shape[0], *t.shape[1:]) if isinstance(t, torch.Tensor) and len(t) == 1 else t for t in tensors]
    return network, grown if isinstance(output, list | tuple) else grown[0]


def _build_module(build: Callable[[], nn.Module]) -> nn.Module:
    made = build()
    if not isinstance(made, nn.Module):
        raise NnplugError(f"is no network but {type(made).__name__}: its builder must return a torch.nn.Module.")
    return made


def _check_switch(build: Callable[[], nn.Module], shape: Size) -> None:
    """Validation switches deep supervision off: a network that goes on with a list would fail after the training."""

    def build_switched_off() -> nn.Module:
        network = build()
        set_deep_supervision(network, False)
        return network

    if isinstance(_run_once(build_switched_off, shape)[1], list | tuple):
        raise NnplugError(
            "still returns a list when its deep supervision is switched off, as validation and prediction do. Its "
            "forward must look at a flag 'deep_supervision' of the network or of its decoder."
        )


def _without_ddp() -> AbstractContextManager[Any]:
    """SyncBatchNorm refuses meta tensors where it would have to talk to other processes."""
    return replaced.object(torch.distributed, "is_initialized", lambda: False)


def _check_outputs(output: Any, batch_size: int, num_classes: int, patch: Size) -> tuple[Size, ...]:
    is_list = isinstance(output, list | tuple)
    tensors = list(output) if is_list else [output]
    if not tensors or not all(isinstance(t, torch.Tensor) for t in tensors):
        found = "an empty list" if is_list and not tensors else type(next(iter(tensors))).__name__
        raise NnplugError(f"returns {found}; expected a tensor, or a list of tensors with deep supervision.")
    for index, tensor in enumerate(tensors):
        if tensor.ndim != len(patch) + 2 or tensor.shape[:2] != (batch_size, num_classes):
            expected = f"({batch_size}, {num_classes}, " + ", ".join("*" * len(patch)) + ")"
            raise NnplugError(f"returns shape {tuple(tensor.shape)} as output {index}; expected {expected}.")
    sizes = tuple(tuple(t.shape[2:]) for t in tensors)
    if sizes[0] != tuple(patch):
        raise ValueError(f"its first output has {'x'.join(map(str, sizes[0]))} voxels, not the patch's size")
    if any(math.prod(small) > math.prod(large) for large, small in pairwise(sizes)):
        raise NnplugError("returns outputs of growing size; the full resolution must come first.")
    return sizes


def _fitting_patch(attempt: Callable[[Size], NetworkOutputs], patch: Size) -> Size | None:
    """The smallest patch, rounded up to multiples of a power of two, that the network takes."""
    tried = {tuple(patch)}
    for multiple in (2, 4, 8, 16, 32, 64, 128, 256):
        candidate = tuple(-(-size // multiple) * multiple for size in patch)
        if candidate in tried or (multiple > 64 and math.prod(candidate) > _LARGEST_TRIED):
            continue
        tried.add(candidate)
        try:
            attempt(candidate)
        except Exception:
            continue
        return candidate
    return None


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return line if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {line}"


def _place(error: BaseException) -> str:
    """Where the author's code met the error, for the end of a message; empty where it was a library's alone."""
    libraries = [module.__path__[0] for module in (torch, nnunetv2, nnplug)]
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if not any(Path(one.filename).is_relative_to(folder) for folder in libraries)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


# --- deep supervision ------------------------------------------------------------------------------------------------


def set_deep_supervision(network: nn.Module, enabled: bool) -> None:
    """Switch the extra outputs of a network on or off, where it has them.

    nnU-Net's networks carry the flag on ``decoder``; others may carry it on the network itself.
    """
    for owner in (getattr(network, "decoder", None), network):
        if hasattr(owner, "deep_supervision"):
            owner.deep_supervision = enabled  # type: ignore[union-attr]


def supervision_scales(outputs: NetworkOutputs, patch_size: Size) -> list[list[float]]:
    """Size of each output relative to the patch, per axis: what nnU-Net shrinks the target by."""
    return [[o / p for o, p in zip(size, patch_size, strict=True)] for size in outputs.sizes]
