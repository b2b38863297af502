"""Which network the demo puts beside nnU-Net's: the smallest that a plug-in brings and that takes the planned patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnplug.network import configure_plans
from nnplug.registry import get_registry


def build_network(plans: Mapping[str, Any], configuration: str, dataset_json: dict[str, Any]) -> Any:
    """The network of plans, freshly initialised, without deep supervision."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dict(plans))
    settings = manager.get_configuration(configuration)
    return get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        determine_num_input_channels(manager, settings, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        allow_init=False,
        deep_supervision=False,
    )


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
        channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
        with torch.device("meta"), torch.no_grad():
            network = build_network(configured, configuration, dataset_json)
            network.eval()(torch.empty(1, channels, *configured["configurations"][configuration]["patch_size"]))
    except Exception:  # a network that can not be built here is no candidate, whatever the reason
        return None
    return sum(parameter.numel() for parameter in network.parameters())
