"""Planners, preprocessors and fingerprint extractors by name: nnU-Net's own, and those of plugins.

nnU-Net looks for its classes only in its own package, so plans that name a plugin's preprocessor also say whose it is:
``nnplug_preprocessors`` holds distribution and version by the name of the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import nnunetv2
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnplug.composition.references import load
from nnplug.composition.terms import normalise_distribution
from nnplug.discovery import registry
from nnplug.discovery.plugin_loading import ClassRegistration
from nnplug.errors import NnplugError

T = TypeVar("T")
#: Top-level key of plans.
OWNERS = "nnplug_preprocessors"
#: What plugins can register, by the class of nnU-Net's that it derives from.
_KINDS = {"ExperimentPlanner": "planner", "DefaultPreprocessor": "preprocessor"}


def find_class(name: str, base: type[T], package: str) -> type[T]:
    """The class ``name`` of ``nnunetv2.PACKAGE`` or of a plugin.

    Raises:
        NnplugError: there is none that derives from ``base``, those that there are are named; there is more than one;
            a plugin's can not be imported.
    """
    found = _search(name, package)
    stock = found if isinstance(found, type) and issubclass(found, base) else None
    registered = _registered(base, name)
    if len(registered) + (stock is not None) > 1:
        owners = [f"'{one.owner}' ({one.where})" for one in registered]
        by, cure = " and ".join(owners), "Uninstall one"
        if stock is not None:
            by, cure = f"{by} and is a class of nnU-Net", "Uninstall the plugin, or rename its class"
        raise NnplugError(f"The {_KINDS[base.__name__]} '{name}' is registered by {by}. {cure}.")
    if registered:
        return _load(registered[0], base)
    if stock is not None:
        return stock
    raise NnplugError(_unknown(name, base, package))


def list_classes(base: type[T], package: str) -> list[type[T]]:
    """``base`` and every class of ``nnunetv2.PACKAGE`` that derives from it."""
    _search("", package)
    return [base, *(one for one in _derived(base) if one.__module__.startswith(f"nnunetv2.{package}."))]


def find_preprocessor(plans: Mapping[str, Any], name: str) -> type[DefaultPreprocessor]:
    """The preprocessor that a configuration of the plans names.

    Raises:
        NnplugError: as ``find_class``; where the plans say whose it is, what to install.
    """
    owner = plans.get(OWNERS, {}).get(name)
    if owner is not None and not _registered(DefaultPreprocessor, name):
        distribution, version = owner["distribution"], owner["version"]
        raise NnplugError(
            f"The plans need the preprocessor '{name}' of {distribution} {version}, which is not installed. "
            f"Install it: pip install {distribution}=={version}"
        )
    return find_class(name, DefaultPreprocessor, "preprocessing")


def plugin_of_preprocessor(name: str) -> str | None:
    """Distribution and version of a plugin's preprocessor as installed; None for nnU-Net's."""
    registered = _registered(DefaultPreprocessor, name)
    return f"{normalise_distribution(registered[0].distribution)} {registered[0].version}" if registered else None


def with_owners(plans: Mapping[str, Any]) -> dict[str, Any]:
    """The plans, with the owners of the plugins' preprocessors that they name, also of plugins that are away."""
    names = {settings.get("preprocessor_name") for settings in plans["configurations"].values()}
    owners = {name: owner for name, owner in plans.get(OWNERS, {}).items() if name in names}
    owners |= {
        one.name: {"distribution": normalise_distribution(one.distribution), "version": one.version}
        for one in registry.get_registry().list_classes("preprocessor")
        if one.name in names
    }
    others = {key: value for key, value in plans.items() if key != OWNERS}
    return others | ({OWNERS: owners} if owners else {})


# --- searching -------------------------------------------------------------------------------------------------------


def _registered(base: type[Any], name: str) -> list[ClassRegistration]:
    kind = _KINDS.get(base.__name__)
    return [one for one in registry.get_registry().list_classes(kind) if one.name == name] if kind else []


def _load(registered: ClassRegistration, base: type[T]) -> type[T]:
    what = f"The {registered.kind} '{registered.name}' of {registered.owner} ({registered.where})"
    try:
        found = load(registered.target, trusted=True)
    except NnplugError as error:
        raise NnplugError(f"{what} can not be used: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise NnplugError(f"{what} does not derive from nnU-Net's {base.__name__}.")
    return found


def _unknown(name: str, base: type[Any], package: str) -> str:
    own = [base.__name__, *sorted(one.__name__ for one in list_classes(base, package)[1:])]
    kind = _KINDS.get(base.__name__)
    others = [one.name for one in registry.get_registry().list_classes(kind)] if kind else []
    near = get_close_matches(name, [*own, *others], n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    message = f"nnU-Net has no {base.__name__} '{name}'.{meant} It has {', '.join(dict.fromkeys(own))}."
    if kind:
        message += f" Plugins have {', '.join(others)}." if others else f" No plugin has a {kind}."
        message += registry.describe_failures(registry.get_registry().failures)
    return message


def _search(name: str, package: str) -> Any:
    """The class, or None; then every module has been imported."""
    folder = Path(nnunetv2.__path__[0], *package.split("."))
    return recursive_find_python_class(str(folder), name, f"nnunetv2.{package}")


def _derived(base: type[Any]) -> Iterator[type[Any]]:
    for one in base.__subclasses__():
        yield one
        yield from _derived(one)
