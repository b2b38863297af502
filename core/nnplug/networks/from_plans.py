"""A network as plans describe it, for training, prediction and the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnplug.networks.network import parameter_names


def build_from_plans(
    build: Callable[..., nn.Module],
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    deep_supervision: bool,
) -> nn.Module:
    """Call the ``build_network_architecture`` of a trainer class, in either of its forms, with what the plans hold."""
    num_channels = determine_num_input_channels(plans, configuration, dataset_json)
    num_classes = plans.get_label_manager(dataset_json).num_segmentation_heads
    if "plans_manager" in parameter_names(build):
        return build(plans, configuration, num_channels, num_classes, deep_supervision)
    return build(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        num_channels,
        num_classes,
        deep_supervision,
    )


def build_uninitialised(*args: Any) -> nn.Module:
    """As ``nnUNetTrainer.build_network_architecture``, without the random weights that would only be overwritten."""
    *args_of_network, deep_supervision = args
    return get_network_from_plans(*args_of_network, allow_init=False, deep_supervision=deep_supervision)
