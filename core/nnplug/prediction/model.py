"""From a model folder to a network with weights: what stock's predictor does, checked, without running foreign code.

nnU-Net's own loading imports every trainer module, unpickles whatever the checkpoint holds and, where a network's class
is missing, takes another one of the same name. Here each of these is an error that says what to install or to allow.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pydoc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnplug.composition.references import EXTERNAL_TRAINERS, load_dotted
from nnplug.composition.references import load as load_reference
from nnplug.discovery.stock_names import BASE, find_trainer
from nnplug.errors import NnplugError
from nnplug.models.checkpoint import load
from nnplug.models.trained_models import Fold, ModelFolder
from nnplug.networks.from_plans import build_from_plans, build_uninitialised
from nnplug.planning.classes import OWNERS, find_preprocessor, plugin_of_preprocessor


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for nnU-Net's predictor.

    Attributes:
        configuration: nnU-Net's, for example ``3d_fullres``.
        network: with the first fold's weights, on the CPU.
        parameters: state dict of every fold.
        trainer_name: the class by which stock nnU-Net builds the network.
        mirror_axes: spatial axes that may be mirrored, None for no mirroring.
    """

    configuration: str
    network: nn.Module
    parameters: list[dict[str, Any]]
    trainer_name: str
    mirror_axes: tuple[int, ...] | None


@dataclass(frozen=True)
class _FoldCheckpoint:
    path: Path
    content: dict[str, Any]

    @property
    def nnplug(self) -> Mapping[str, Any]:
        return self.content.get("nnplug") or {}

    @property
    def name(self) -> str:
        return str(self.nnplug.get("name") or self.content["trainer_name"])

    @property
    def configuration(self) -> str:
        return self.content["init_args"]["configuration"]


def load_model(
    model: ModelFolder,
    folds: Sequence[Fold],
    checkpoint_name: str = "checkpoint_final.pth",
    *,
    trust_checkpoint: bool = False,
    trust_code: bool = False,
) -> LoadedModel:
    """Read the folds' checkpoints, check that they belong together, build the network.

    Args:
        model: the model folder.
        folds: as :func:`nnplug.models.trained_models.choose_folds` gives them.
        checkpoint_name: file in each ``fold_X``.
        trust_checkpoint: let the checkpoint run code while it is read.
        trust_code: let plans and checkpoint name code outside the libraries and the installed plugins.

    Raises:
        NnplugError: unreadable or foreign checkpoint, missing plugin, folds of different models, network that can not
            be found, is not allowed, or does not fit the weights.
    """
    checkpoints = []
    for fold in folds:
        path = model.path / f"fold_{fold}" / checkpoint_name
        content = load(path, trust_checkpoint=trust_checkpoint)
        if "configuration" not in content["init_args"]:
            raise NnplugError(f"{path} does not say which configuration it was trained on. Use a whole checkpoint.")
        content.pop("optimizer_state", None)  # twice the size of the weights
        checkpoints.append(_FoldCheckpoint(path, content))
    _check_distributions(checkpoints)
    _check_agreement(checkpoints, model)
    first = checkpoints[0]
    plans = PlansManager(model.plans)
    manager = plans.get_configuration(first.configuration)
    _check_names(manager, model.path, trust_code)
    _check_preprocessor(model, manager.preprocessor_name)
    network = _build_network(plans, manager, model.dataset_json, first, trust_code)
    for checkpoint in checkpoints:
        _check_fit(network, checkpoint, manager.network_arch_class_name)
    parameters = [checkpoint.content["network_weights"] for checkpoint in checkpoints]
    network.load_state_dict(parameters[0])
    axes = first.content.get("inference_allowed_mirroring_axes")
    return LoadedModel(
        configuration=first.configuration,
        network=network,
        parameters=parameters,
        trainer_name=first.content["trainer_name"],
        mirror_axes=tuple(axes) if axes else None,
    )


# --- plugins ---------------------------------------------------------------------------------------------------------


def _check_distributions(checkpoints: Sequence[_FoldCheckpoint]) -> None:
    needed = {
        (str(name), str(version))
        for checkpoint in checkpoints
        for name, version in (checkpoint.nnplug.get("distributions") or {}).items()
    }
    installed = {name: _installed_version(name) for name, _ in needed}
    missing = sorted((name, version) for name, version in needed if installed[name] is None)
    if missing and _lacks_network(checkpoints[0]):
        listed = " and ".join(f"{name} {version}" for name, version in missing)
        command = " ".join(f"{name}=={version}" for name, version in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise NnplugError(
            f"The model '{checkpoints[0].name}' was trained with {listed}, which {verb} not installed. "
            f"Install it: pip install {command}"
        )
    for name, version in sorted(needed):
        if installed[name] != version:
            found = f"{installed[name]} is installed" if installed[name] else "which the network does not need"
            print(
                f"nnplug: warning: the model '{checkpoints[0].name}' was trained with {name} {version}, {found}. "
                f"For the same code: pip install {name}=={version}",
                file=sys.stderr,
            )


def _lacks_network(checkpoint: _FoldCheckpoint) -> bool:
    """Whether the package of the network is not there; those of losses and samplers play no part in prediction."""
    made_by = [checkpoint.nnplug.get("network_builder"), checkpoint.nnplug.get("base_trainer")]
    packages = {str(name).partition(":")[0].partition(".")[0] for name in made_by if name}
    packages.discard(EXTERNAL_TRAINERS)
    return not packages or any(importlib.util.find_spec(package) is None for package in packages)


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _check_preprocessor(model: ModelFolder, name: str) -> None:
    """The prediction will look for it too, later and in worker processes."""
    try:
        find_preprocessor(model.plans, name)
    except NnplugError as error:
        raise NnplugError(f"{model.path / 'plans.json'}: {error}") from error
    owner = model.plans.get(OWNERS, {}).get(name)
    made_by = f"{owner['distribution']} {owner['version']}" if owner else None
    installed = plugin_of_preprocessor(name)
    if made_by is not None and made_by != installed:
        print(
            f"nnplug: warning: the model's images were preprocessed with '{name}' of {made_by}, {installed} is "
            f"installed. For the same code: pip install {made_by.replace(' ', '==')}",
            file=sys.stderr,
        )


# --- agreement -------------------------------------------------------------------------------------------------------


def _check_agreement(checkpoints: Sequence[_FoldCheckpoint], model: ModelFolder) -> None:
    """Folds of one model have one trainer and configuration, and the network and labels of the folder's JSON files."""
    first = checkpoints[0]
    for checkpoint in checkpoints:
        for what, mine, other in (
            ("trainer", checkpoint.name, first.name),
            ("configuration", checkpoint.configuration, first.configuration),
        ):
            if mine != other:
                raise NnplugError(
                    f"{checkpoint.path} is of {what} '{mine}', {first.path} of '{other}': "
                    "the folds are not of one model."
                )
    known = list(model.plans["configurations"])
    if first.configuration not in known:
        raise NnplugError(
            f"{first.path} is of configuration '{first.configuration}', and {model.path / 'plans.json'} has only "
            f"{', '.join(known)}."
        )
    expected = _facts(model.plans, model.dataset_json, first.configuration)
    for checkpoint in checkpoints:
        arguments = checkpoint.content["init_args"]
        found = _facts(arguments.get("plans"), arguments.get("dataset_json"), checkpoint.configuration)
        for what, value in found.items():
            if value != expected[what]:
                raise NnplugError(
                    f"{checkpoint.path} was trained with another {what} than {model.path} describes now: the folder "
                    "mixes models. Train the fold again, or put the plans.json and dataset.json of its training back."
                )


def _facts(plans: Any, dataset_json: Any, configuration: str) -> dict[str, str]:
    """What a network's input and output depend on, in a form that can be compared."""
    facts = {}
    if isinstance(plans, dict):
        settings = PlansManager(plans).get_configuration(configuration).configuration
        for what, key in (
            ("network architecture", "architecture"),
            ("spacing", "spacing"),
            ("normalization", "normalization_schemes"),
        ):
            facts[what] = json.dumps(settings.get(key), sort_keys=True, default=str)
    if isinstance(dataset_json, dict):
        channels = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
        facts["number of channels"] = str(len(channels))
        facts["set of labels"] = str(sorted(json.dumps(value) for value in dataset_json["labels"].values()))
    return facts


# --- network ---------------------------------------------------------------------------------------------------------


def _check_names(manager: ConfigurationManager, folder: Path, trust_code: bool) -> None:
    """Check what nnU-Net will import with ``pydoc.locate`` because plans.json says so."""
    arch_kwargs = manager.network_arch_init_kwargs
    imported = [arch_kwargs.get(key) for key in manager.network_arch_init_kwargs_req_import]
    for name in [manager.network_arch_class_name, *imported]:
        if name is None:
            continue
        if not isinstance(name, str) or "." not in name:
            raise NnplugError(f"{folder / 'plans.json'}: architecture: '{name}' is no name of a network or layer.")
        root = name.partition(".")[0]
        if not root.isidentifier() or importlib.util.find_spec(root) is None:
            raise NnplugError(
                f"{folder / 'plans.json'} needs '{name}', and no package '{root}' is installed. "
                "Install the plugin that the model was trained with; a module of your own needs its folder in "
                "PYTHONPATH, and --trust-code."
            )
        try:
            found = load_dotted(name, trusted=trust_code)
        except NnplugError as error:
            raise NnplugError(f"{folder / 'plans.json'}: architecture: {error}") from error
        if pydoc.locate(name) is not found:
            raise NnplugError(
                f"{folder / 'plans.json'}: architecture: '{name}' names a module and an object; rename one."
            )


def _build_network(
    plans: PlansManager,
    manager: ConfigurationManager,
    dataset_json: dict[str, Any],
    checkpoint: _FoldCheckpoint,
    trust_code: bool,
) -> nn.Module:
    trainer = _static_trainer(checkpoint, trust_code)
    build = build_uninitialised if trainer is None else trainer.build_network_architecture
    try:
        return build_from_plans(build, plans, manager, dataset_json, deep_supervision=False)
    except Exception as error:
        what = f"of {trainer.__name__}" if trainer is not None else f"'{manager.network_arch_class_name}'"
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise NnplugError(
            f"The network {what} of {checkpoint.path} could not be built ({type(error).__name__}: {reason})."
        ) from error


def _static_trainer(checkpoint: _FoldCheckpoint, trust_code: bool) -> Any:
    """The trainer class that builds the network by its own static method; None where nnUNetTrainer's applies."""
    name = checkpoint.content["trainer_name"]
    if name == BASE:
        return None
    trainer = find_trainer(name)
    if trainer is not None:
        return load_reference(trainer.reference, trusted=True)
    base_trainer = checkpoint.nnplug.get("base_trainer")
    if base_trainer:
        loaded = load_reference(base_trainer, trusted=trust_code)
        if not hasattr(loaded, "build_network_architecture"):
            raise NnplugError(f"{checkpoint.path}: base_trainer '{base_trainer}' is no nnU-Net trainer.")
        return loaded
    raise NnplugError(
        f"{checkpoint.path} was made by the trainer class '{name}', which is neither in nnU-Net nor in a folder of the "
        "variable nnUNet_extTrainer. Install it, or set the variable."
    )


def _check_fit(network: nn.Module, checkpoint: _FoldCheckpoint, name: str) -> None:
    mine = {key: getattr(value, "shape", None) for key, value in network.state_dict().items()}
    theirs = {key: getattr(value, "shape", None) for key, value in checkpoint.content["network_weights"].items()}
    missing = [key for key in mine if key not in theirs]
    unknown = [key for key in theirs if key not in mine]
    other = [
        f"{key} is {_shape(theirs[key])} in the checkpoint and {_shape(mine[key])} in the network"
        for key in mine
        if key in theirs and mine[key] != theirs[key]
    ]
    parts = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("it lacks", missing), ("it has unknown", unknown), ("other shape:", other))
        if keys
    ]
    if parts:
        raise NnplugError(f"The weights in {checkpoint.path} do not fit the network '{name}': {'; '.join(parts)}.")


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a number" if shape is not None else "no tensor"
