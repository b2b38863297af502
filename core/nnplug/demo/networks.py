"""Which network the demo puts beside nnU-Net's: the smallest that a plug-in brings and that takes the planned patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.datasets import channel_names
from nnplug.discovery.registry import get_registry
from nnplug.networks.from_plans import build_from_plans, build_uninitialised
from nnplug.networks.network import configure_plans


def build_network(plans: Mapping[str, Any], configuration: str, dataset_json: dict[str, Any]) -> Any:
    """The network of plans, freshly initialised, without deep supervision."""
    manager = PlansManager(dict(plans))
    settings = manager.get_configuration(configuration)
    return build_from_plans(build_uninitialised, manager, settings, dataset_json, deep_supervision=False)


def count_parameters(plans: Mapping[str, Any], configuration: str, dataset_json: dict[str, Any]) -> int:
    """Number of parameters of the network of plans."""
    return sum(parameter.numel() for parameter in build_network(plans, configuration, dataset_json).parameters())


def smallest_network(plans: Mapping[str, Any], configuration: str, dataset_json: dict[str, Any]) -> str | None:
    """Name of the registered trainer with the smallest network that takes the planned patch; None where there is none.

    Nothing is computed: the networks are built and run without data.
    """
    registry = get_registry()
    sizes: dict[str, int] = {}
    for name, found in registry.registrations.items():
        if len(found) == 1:
            size = _size_if_it_fits(name, plans, configuration, dataset_json)
            if size is not None:
                sizes[name] = size
    return min(sizes, key=lambda name: (sizes[name], name)) if sizes else None


def _size_if_it_fits(
    name: str, plans: Mapping[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> int | None:
    import torch

    try:
        resolved = get_registry().resolve(name)
        if resolved.config.network_builder is None or resolved.config.base_trainer is not None:
            return None
        configured = configure_plans(plans, configuration, resolved)
        channels = len(channel_names(dataset_json))
        with torch.device("meta"), torch.no_grad():
            network = build_network(configured, configuration, dataset_json)
            network.eval()(torch.empty(1, channels, *configured["configurations"][configuration]["patch_size"]))
    except Exception:  # a network that can not be built here is no candidate, whatever the reason
        return None
    return sum(parameter.numel() for parameter in network.parameters())
