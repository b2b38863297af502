"""Whether stock nnU-Net can predict with a trainer's model, told from its config and its preprocessor's name."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from nnplug.composition.references import describe, import_string
from nnplug.composition.resolved import ResolvedConfig
from nnplug.discovery.registry import get_registry
from nnplug.discovery.stock_names import fields_set_by, stock_trainers
from nnplug.errors import NnplugError


def stock_prediction_obstacle(resolved: ResolvedConfig, preprocessor: str | None = None) -> str | None:
    """Why stock ``nnUNetv2_predict`` can not load a model of this trainer; None where it can.

    Loss, optimiser, loaders and augmentation play no part in prediction; the network, the preprocessing and the
    resampling of the probabilities do.

    Args:
        resolved: the trainer.
        preprocessor: that the plans name, where they are known.
    """
    if preprocessor is not None and preprocessor not in _stock_names("preprocessors", ast.ClassDef):
        owners = [one.owner for one in get_registry().list_classes("preprocessor") if one.name == preprocessor]
        where = f" comes from {owners[0]}" if owners else " is not nnU-Net's"
        return f"the preprocessor '{preprocessor}'{where}, and nnU-Net looks for preprocessors in its own package only"
    config = resolved.config
    if config.network_builder is not None:
        target = config.network_builder.target
        try:
            module = import_string(target).partition(":")[0]
        except NnplugError as error:
            return f"network_builder: {error}"
        return _missing_package(module) or _resampling_obstacle(resolved)
    base = config.base_trainer
    owner = fields_set_by(base.target).get("network_builder") if base else None
    if base and owner is not None and owner not in stock_trainers():
        return (
            f"{owner} makes the network itself (base_trainer is {describe(base.target)}), and stock nnU-Net finds that "
            "class only in a folder of nnUNet_extTrainer"
        )
    return _resampling_obstacle(resolved)


def needed_packages(resolved: ResolvedConfig) -> list[str]:
    """What has to be installed for stock nnU-Net to build the network; empty where nnU-Net has it all."""
    component = resolved.config.network_builder
    if component is None:
        return []
    package = describe(component.target).partition(":")[0].partition(".")[0]
    if package in ("torch", "nnunetv2", "dynamic_network_architectures"):
        return []
    owner = get_registry().distribution_of(package)
    return [owner[0] if owner else package]


def _missing_package(module: str) -> str | None:
    """A module beside a script is found while that script runs, and not by nnU-Net's commands."""
    package = module.partition(".")[0]
    is_installed = package in packages_distributions() or package in get_registry().packages
    if is_installed or importlib.util.find_spec(package) is None:
        return None
    return f"network_builder: '{module}' belongs to no installed package; nnU-Net finds it only through PYTHONPATH"


def _resampling_obstacle(resolved: ResolvedConfig) -> str | None:
    name = (resolved.config.plans or {}).get("resampling_fn_probabilities")
    if name is None or name in _stock_names("resampling", ast.FunctionDef):
        return None
    return f"plans.resampling_fn_probabilities: nnU-Net looks for '{name}' in its own package only, and it is not there"


@cache
def _stock_names(folder: str, kind: type[ast.ClassDef] | type[ast.FunctionDef]) -> frozenset[str]:
    """What nnU-Net defines in a folder of its preprocessing, read without importing it."""
    spec = importlib.util.find_spec("nnunetv2")
    names: set[str] = set()
    for location in (spec.submodule_search_locations if spec else None) or []:
        for file in Path(location, "preprocessing", folder).glob("*.py"):
            names.update(node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, kind))
    return frozenset(names)
