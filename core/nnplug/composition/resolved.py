"""`ResolvedConfig`: a trainer with everything decided: values, where each came from, the name to file it under."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnplug.composition.component import Component
from nnplug.composition.fields import SETTINGS
from nnplug.composition.references import describe
from nnplug.config import TrainerConfig

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Origin:
    """Where a value came from.

    Attributes:
        term: the name or assignment that set it.
        distribution: the plugin's distribution, None for assignments, files and Python objects.
        version: of the distribution.
        file: file and line of the registration.
    """

    term: str
    distribution: str | None = None
    version: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class ResolvedConfig:
    """A trainer that is ready to be built.

    Attributes:
        name: canonical name: the results folder, the checkpoint and prediction use it.
        config: flat: nothing is inherited, every code field is a `Component`, None, or (loss_fn) a finished object.
        origins: by field where its value came from; settings of components and plans as ``loss_fn.weight``.
        distributions: version by distribution, of every plugin that has a part in it.
        trust_code: the user trusts references in files.
    """

    name: str
    config: TrainerConfig
    origins: Mapping[str, Origin] = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)
    trust_code: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The name and the fields that are set, as values that JSON holds; equal configs give equal results.

        Code is ``{"use": "package.module:attribute"}`` with the keyword arguments beside ``use``; a finished object is
        ``{"use": its class, "repr": its repr}``. Description and source are left out: they change no training.
        """
        values: dict[str, Any] = {"name": self.name}
        for name in SETTINGS:
            value = getattr(self.config, name)
            if value is not None:
                values[name] = plain(value)
        return values


def plain(value: Any) -> Any:
    """A value as JSON can hold it; see `ResolvedConfig.as_dict`."""
    if isinstance(value, Component):
        arguments = {key: plain(value.kwargs[key]) for key in sorted(value.kwargs)}
        return {"use": describe(value.target), **arguments}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "__qualname__"):
        return {"use": describe(value)}
    return {"use": describe(value), "repr": _ADDRESS.sub("", repr(value)), **_settings(value)}


def _settings(value: Any) -> dict[str, Any]:
    """What a finished loss was made with, as far as it can be read; its repr rarely says."""
    settings = {
        key: plain(setting)
        for key, setting in sorted(getattr(value, "__dict__", {}).items())
        if not key.startswith("_")
        and key != "training"
        and isinstance(setting, (bool, int, float, str, list, tuple, dict))
    }
    for name, module in getattr(value, "_modules", {}).items():
        settings[name] = plain(module)
    if "_modules" in getattr(value, "__dict__", {}) and (state := value.state_dict()):
        digest = hashlib.sha256()
        for name, tensor in state.items():
            digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.detach().cpu().double().numpy().tobytes())
        settings["state"] = digest.hexdigest()[:16]
    return settings
