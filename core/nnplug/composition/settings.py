"""The settings of a component: what can be set after ``+FIELD.``, and the error where its code has no such setting."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nnplug.composition.checks import did_you_mean
from nnplug.composition.component import Component
from nnplug.composition.references import describe
from nnplug.composition.signatures import check_exists, read_signature
from nnplug.errors import NnplugError

# Arguments that come from other fields or from the run; a loss may have a setting of its own with such a name.
_GIVEN = ("context", "initial_lr", "log", "lr", "num_epochs", "patch_size", "weight_decay")
_GIVEN_TO_NETWORKS = ("deep_supervision",)


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
    given = _GIVEN + (_GIVEN_TO_NETWORKS if field == "network_builder" else ())
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
