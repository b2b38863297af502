"""Every nnplug name as an attribute: what makes stock ``nnUNetv2_train -tr NAME`` find it.

nnU-Net looks for trainers with ``hasattr(module, name)`` in every module of the folders in ``nnUNet_extTrainer``.
``nnplug env`` puts this module's folder there.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """The trainer class of a name.

    Raises:
        AttributeError: not a name of nnplug; nnU-Net goes on looking elsewhere.
        NnplugError: a composition that is wrong, with what to do.
    """
    from nnplug.discovery.registry import UnknownTrainerError, get_registry

    registry = get_registry()
    is_composed = "+" in name or "=" in name
    if name.startswith("__") or not (is_composed or name.partition("@")[0] in registry.registrations):
        raise AttributeError(f"nnplug has no trainer '{name}'")
    try:
        resolved = registry.resolve(name)
    except UnknownTrainerError as error:
        raise AttributeError(str(error)) from error
    from nnplug.training.trainer import build_trainer_class

    return build_trainer_class(resolved)
