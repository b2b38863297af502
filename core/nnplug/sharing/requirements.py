"""Which packages a model was trained with, in a file beside it, and which of them are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping

from nnplug.errors import NnplugError
from nnplug.models.model_folder import Manifest
from nnplug.models.trained_models import ModelFolder

FILE_NAME = "nnplug_requirements.txt"
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._+!-]*)")


def requirements_text(model: ModelFolder) -> str:
    """For ``pip install -r``: the distributions of the trainer's plugins; none for a model of stock nnU-Net."""
    manifest = Manifest.read(model.path)
    distributions: Mapping[str, str] = manifest.distributions if manifest else {}
    lines = [
        f"# What '{model.path.name.split('__')[0]}' was trained with. To predict with it: pip install -r {FILE_NAME}",
        f"# nnU-Net {importlib.metadata.version('nnunetv2')} exported it.",
        *(f"{name}=={version}" for name, version in sorted(distributions.items())),
    ]
    return "\n".join(lines) + "\n"


def missing_packages(model: ModelFolder) -> list[str]:
    """What the model needs and is not installed: requirements for pip, or packages of which only the name is known.

    Nothing of the model is imported.
    """
    path = model.path / FILE_NAME
    named = _LINE.findall(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []
    missing = [f"{name}=={version}" for name, version in named if not _is_installed(name)]
    return missing or sorted(_foreign_packages(model))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _foreign_packages(model: ModelFolder) -> set[str]:
    """Top-level packages of the networks that are not here."""
    configurations = model.plans["configurations"]
    if not isinstance(configurations, dict):
        raise NnplugError(f"{model.path / 'plans.json'} is not complete: its configurations are no JSON object.")
    names = set()
    for settings in configurations.values():
        architecture = settings.get("architecture") if isinstance(settings, dict) else None
        if isinstance(architecture, dict):
            # only the first part: to look for the others would import it
            names.add(str(architecture.get("network_class_name", "")).partition(".")[0])
    return {name for name in names if name.isidentifier() and not _is_importable(name)}


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that is loaded and was made otherwise, such as __main__
        return True
