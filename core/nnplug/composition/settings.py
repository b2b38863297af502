"""The settings of a component: what can be set after ``+FIELD.``, and the error where its code has no such setting."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nnplug.composition.checks import did_you_mean
from nnplug.composition.component import Component
from nnplug.composition.references import describe
from nnplug.composition.signatures import check_exists, read_signature
from nnplug.composition.values import format_value
from nnplug.config import TrainerConfig
from nnplug.errors import NnplugError

# Arguments that come from other fields or from the run; a loss may have a setting of its own with such a name.
_GIVEN = ("context", "initial_lr", "log", "lr", "num_epochs", "patch_size", "weight_decay")

# Settings that would be written over, by field: the field that decides them.
_DECIDED = {
    "optimizer": {"lr": "initial_lr"},
    "lr_scheduler": {"initial_lr": "initial_lr", "num_epochs": "num_epochs"},
    "network_builder": {"deep_supervision": "enable_deep_supervision", "patch_size": "patch_size"},
    "training_transforms": {"mirror_axes": "mirror_axes", "patch_size": "patch_size"},
    "sampler": {
        "oversample_foreground_percent": "oversample_foreground_percent",
        "probabilistic_oversampling": "probabilistic_oversampling",
    },
}
# Arguments that no field decides but the run.
_OF_THE_RUN = {
    "loss_fn": ("context",),
    "sampler": ("log",),
    "training_transforms": (
        "deep_supervision_scales",
        "do_dummy_2d_data_aug",
        "foreground_labels",
        "ignore_label",
        "is_cascaded",
        "regions",
        "rotation_for_DA",
        "use_mask_for_norm",
    ),
}


def check_decided(config: TrainerConfig, name: str) -> None:
    """Refuse settings that another field or the run decides: a part of the training would go by each.

    Args:
        config: everything decided.
        name: of the trainer.
    """
    if config.base_trainer is not None and config.base_trainer.kwargs:
        setting = next(iter(config.base_trainer.kwargs))
        raise NnplugError(
            f"'{name}' sets base_trainer.{setting}, and a trainer class is taken without settings. Fields change it, "
            "as num_epochs=5; all of them: nnplug show NAME --all"
        )
    for field, decided in _DECIDED.items():
        component = getattr(config, field)
        settings = component.kwargs if isinstance(component, Component) else {}
        for setting, owner in decided.items():
            if setting in settings:
                value = format_value(settings[setting])
                raise NnplugError(f"'{name}' sets {field}.{setting}, which the field {owner} decides: {owner}={value}.")
    for field, given in _OF_THE_RUN.items():
        component = getattr(config, field)
        for setting in given:
            if isinstance(component, Component) and setting in component.kwargs:
                raise NnplugError(f"'{name}' sets {field}.{setting}, which every run gives it. Leave it out.")


@dataclass(frozen=True)
class Settings:
    """What a component can be given.

    Attributes:
        more: source text of the default by name, of settings that it is not given.
        unnamed: settings it is given that only its ``**kwargs`` takes, as it would take a misspelt one.
    """

    more: dict[str, str]
    unnamed: list[str]


def read_settings(field: str, component: Component) -> Settings:
    """The settings of a field's component, read from its source.

    Raises:
        NnplugError: its code is not there, or it is given a setting that it does not have.
    """
    if isinstance(component.target, str):
        check_exists(component.target)
    signature = read_signature(component.target)
    if signature is None:
        return Settings({}, [])
    given = (*_GIVEN, *_DECIDED.get(field, ()), *_OF_THE_RUN.get(field, ()))
    unknown = [name for name in component.kwargs if name not in signature.names]
    if unknown and not signature.takes_any:
        settable = [name for name in signature.defaults if name not in given]
        raise NnplugError(
            f"{field} {describe(component.target)} has no setting '{unknown[0]}'{did_you_mean(unknown[0], settable)}. "
            f"It takes: {', '.join(settable) or 'none'}."
        )
    more = {
        name: default
        for name, default in signature.defaults.items()
        if name not in given and name not in component.kwargs
    }
    return Settings(more, unknown)


def explain(field: str, component: Component, error: Exception) -> NnplugError:
    """What to say where a component could not be made."""
    try:
        settings = read_settings(field, component)
    except NnplugError as better:
        return better
    refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if refused and refused[1] in settings.unnamed:
        hint = did_you_mean(refused[1], settings.more)
        return NnplugError(f"{field} {describe(component.target)} has no setting '{refused[1]}'{hint}.")
    return NnplugError(f"{field} {describe(component.target)} can not be made: {error}")
