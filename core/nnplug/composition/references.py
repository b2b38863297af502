"""References ``"package.module:attribute"``: to the object, from the object, and which of them a file may name.

A string in a file (recipe, plans, checkpoint) is data from somewhere else. It may name components of torch, MONAI,
nnU-Net and its architectures, and anything that an installed plugin package defines itself; nothing else, unless the
user says that the code is trusted.
"""

from __future__ import annotations

import importlib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from nnplug.composition.checks import did_you_mean
from nnplug.composition.component import REFERENCE
from nnplug.errors import NnplugError

LIBRARIES = ("torch", "monai", "nnunetv2", "dynamic_network_architectures")
# Module part of references to classes in the folders that the user named in the variable nnUNet_extTrainer.
EXTERNAL_TRAINERS = "nnUNet_extTrainer"

_COMPONENT_BASES = {
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer",
    "nnunetv2.training.dataloading.data_loader.nnUNetDataLoader",
}
#: Components that fetch code and weights from the network when they are made.
_FETCHING = {"monai.losses.perceptual.PerceptualLoss"}
_TRAINER_TRANSFORMS = {"get_training_transforms", "get_validation_transforms"}


class FileReference(str):
    """A reference that was read from a file; `load` follows it only to where files may refer."""

    __slots__ = ()


def load(ref: str | Callable[..., Any], *, trusted: bool) -> Any:
    """Import what a reference names.

    Args:
        ref: ``"package.module:attribute"``, or the object itself, which is returned.
        trusted: the reference was written in Python code or the user trusts it. A `FileReference` is never trusted.

    Raises:
        NnplugError: missing module, missing dependency, missing attribute, or not allowed in a file.
    """
    if not isinstance(ref, str):
        return ref
    if not REFERENCE.match(ref):
        raise NnplugError(f"'{ref}' is not a reference. Write 'package.module:attribute'.")
    is_restricted = not trusted or isinstance(ref, FileReference)
    if is_restricted:
        check_root(ref)
    module_name, _, path = ref.partition(":")
    if module_name == EXTERNAL_TRAINERS:
        from nnplug.discovery.stock_names import load_external

        return load_external(path)
    found = import_module(module_name, ref)
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            hint = did_you_mean(attribute, [name for name in dir(found) if not name.startswith("_")])
            raise NnplugError(f"'{ref}': '{module_name}' has no '{path}'{hint}.") from None
    if is_restricted:
        _check_object(found, ref)
    return found


def load_dotted(name: str, *, trusted: bool) -> Any:
    """As `load`, for names as plans hold them: ``torch.nn.modules.conv.Conv3d``."""
    module, _, attribute = name.rpartition(".")
    return load(f"{module}:{attribute}", trusted=trusted)


def import_module(module_name: str, ref: str) -> types.ModuleType:
    """Import a module, saying whether it is missing itself or something that it needs."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise NnplugError(
                f"'{ref}': there is no module '{error.name}'. Is its package installed? "
                "A module of your own is found through PYTHONPATH."
            ) from error
        raise NnplugError(
            f"'{ref}': importing '{module_name}' needs '{error.name}', which is not installed."
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise NnplugError(f"'{ref}': importing '{module_name}' failed ({type(error).__name__}: {reason}).") from error


def import_string(obj: Any) -> str:
    """Spell a reference to an object.

    Raises:
        NnplugError: the object can not be imported from another process, with the reason.
    """
    if isinstance(obj, str):
        return obj
    name = getattr(obj, "__qualname__", None)
    module_name = getattr(obj, "__module__", None)
    if isinstance(obj, partial):
        raise NnplugError(f"{obj!r} can not be imported by name. Use nnplug.Component(function, key=value) instead.")
    if not name or not module_name:
        raise NnplugError(f"{obj!r} can not be imported by name: it is an object, not a class or function of a module.")
    shown = f"{module_name}:{name}"
    if "<lambda>" in name:
        raise NnplugError(
            f"'{shown}' can not be imported by name: it is a lambda. Write a function with def in a module."
        )
    if "<locals>" in name:
        raise NnplugError(
            f"'{shown}' can not be imported by name: it is defined inside a function. Move it to the top of its module."
        )
    if module_name == "__main__":
        raise NnplugError(f"'{shown}' can not be imported by name: it is defined in a script. Move it to a module.")
    if load(shown, trusted=True) != obj:
        raise NnplugError(f"'{shown}' can not be imported by name: another object has that name in the module.")
    return shown


def describe(obj: Any) -> str:
    """A reference to an object or to its class, also where it can not be imported."""
    if isinstance(obj, str):
        return str(obj)
    named = obj if hasattr(obj, "__qualname__") else type(obj)
    return f"{named.__module__}:{named.__qualname__}"


def check_root(ref: str) -> None:
    """Refuse a reference from a file by its text, before anything is imported.

    Raises:
        NnplugError: it leads out of the packages that files may name.
    """
    module_name, _, path = ref.partition(":")
    root = module_name.partition(".")[0]
    if root == EXTERNAL_TRAINERS:
        return
    if root not in LIBRARIES and root not in _plugin_packages():
        raise NnplugError(
            f"'{ref}' is outside of what a file may name: {', '.join(LIBRARIES)} and packages of installed plugins. "
            "If you trust the file and that code, add --trust-code."
        )
    if any(part.startswith("_") for part in [*module_name.split("."), *path.split(".")]):
        raise NnplugError(f"'{ref}' is private; a file may name public things only. If you trust it, add --trust-code.")


_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+\Z")
_LAYERS = re.compile(r"torch\.nn\.(modules\.[a-z]\w*\.)?[A-Z]\w*\Z")


def check_architecture(values: Any) -> None:
    """Refuse names in a network's arguments that nnU-Net would import and call, other than layers of torch.

    nnU-Net imports such strings (``conv_op``, ``norm_op``, ``nonlin``) without asking what they are.
    """
    if isinstance(values, Mapping):
        if "_kw_requires_import" in values:
            raise NnplugError("_kw_requires_import can not be set in a file. If you trust it, add --trust-code.")
        for value in values.values():
            check_architecture(value)
    elif isinstance(values, list | tuple):
        for value in values:
            check_architecture(value)
    elif isinstance(values, str) and _DOTTED.match(values) and not _LAYERS.match(values):
        raise NnplugError(
            f"'{values}' is outside of what a file may name in an architecture: layers of torch.nn. "
            "If you trust the file and that code, add --trust-code."
        )


def _plugin_packages() -> Iterable[str]:
    from nnplug.discovery.registry import get_registry

    return get_registry().packages


def _check_object(found: Any, ref: str) -> None:
    """Refuse what a module merely imported from elsewhere, and functions of the libraries."""
    home = getattr(found, "__module__", None) or ""
    root = home.partition(".")[0]
    if root in LIBRARIES and (_is_component(found) or _is_trainer_transform(found, home)):
        return
    if root in LIBRARIES:
        raise NnplugError(
            f"'{ref}' is not a class that a file may name: of {root} these are modules, losses, optimizers, schedules, "
            "loaders and trainers. If you trust the file, add --trust-code."
        )
    if root not in _plugin_packages():
        raise NnplugError(
            f"'{ref}' is defined in '{home or type(found).__name__}', which a file may not name. "
            "If you trust the file and that code, add --trust-code."
        )


def _is_component(found: Any) -> bool:
    bases = (found if isinstance(found, type) else type(found)).__mro__
    names = {f"{base.__module__}.{base.__qualname__}" for base in bases}
    return not names.isdisjoint(_COMPONENT_BASES) and names.isdisjoint(_FETCHING)


def _is_trainer_transform(found: Any, home: str) -> bool:
    """A static method of a trainer class that makes transforms; nnU-Net keeps its augmentations there."""
    owner, _, name = getattr(found, "__qualname__", "").partition(".")
    if not isinstance(found, types.FunctionType) or name not in _TRAINER_TRANSFORMS:
        return False
    return _is_component(getattr(importlib.import_module(home), owner, None))
