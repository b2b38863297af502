"""The trainers of all plugins, by name.

Entry points of the group ``nnplug`` are gone through one plugin at a time. What fails is taken out again and kept as a
record, so that one broken package never hides the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

import pluggy

from nnplug import hookspecs
from nnplug.composition import compose
from nnplug.composition.compose import Registration, ResolvedConfig
from nnplug.composition.fields import CODE_FIELDS, SETTINGS
from nnplug.composition.recipes import read_file_recipe
from nnplug.composition.terms import NameTerm, normalise_distribution
from nnplug.config import TrainerConfig
from nnplug.discovery.plugin_loading import (
    ClassRegistration,
    PluginRecord,
    call_plugin,
    load_plugin,
    reserved_reason,
    shorten,
)
from nnplug.discovery.stock_names import BASE, StockTrainer, external_trainers, find_trainer, stock_trainers
from nnplug.errors import NnplugError

__all__ = ["PluginRecord", "Registration", "Registry", "UnknownTrainerError", "get_registry"]

GROUP = "nnplug"
# nnU-Net's own classes are named like this.
_CLASS_PREFIXES = ("nnUNetTrainer", "nnUNet_")
_FILE_RECIPE = re.compile(r"(.+)-[0-9a-f]{8}\Z")


class UnknownTrainerError(NnplugError):
    """No plugin, nnU-Net class or recipe has this name."""


class Registry:
    """The trainers of all plugins, by name.

    Args:
        entries: entry points of the group; those of the installed packages where not given.
    """

    def __init__(self, entries: Iterable[EntryPoint] | None = None) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.silenced: set[str] = set()
        self._registrations: dict[str, list[Registration]] = {}
        self._entries = _sorted(entry_points(group=GROUP) if entries is None else entries)
        self.plugins: tuple[PluginRecord, ...] = tuple(map(self._load, self._entries))

    @property
    def failures(self) -> list[PluginRecord]:
        """The plugins that were refused."""
        return [record for record in self.plugins if not record.is_loaded]

    @property
    def registrations(self) -> Mapping[str, tuple[Registration, ...]]:
        """Registrations by name; more than one where the name is ambiguous."""
        return {name: tuple(found) for name, found in self._registrations.items()}

    def list_classes(self, kind: str) -> list[ClassRegistration]:
        """The planners (``planner``) or preprocessors (``preprocessor``) of all plugins."""
        return [one for record in self.plugins for one in record.classes if one.kind == kind]

    @cached_property
    def packages(self) -> Mapping[str, tuple[str, str]]:
        """Top-level packages of the distributions that register plugins, with name and version of the distribution.

        nnplug itself is not among them: it is no plugin, and its functions are not components.
        """
        found: dict[str, tuple[str, str]] = {}
        for dist in {dist.name: dist for entry in self._entries if (dist := entry.dist)}.values():
            modules = [entry.module.partition(".")[0] for entry in self._entries if entry.dist is dist]
            for package in [*modules, *_top_level(dist)]:
                found.setdefault(package, (normalise_distribution(dist.name), dist.version))
        found.pop(hookspecs.PROJECT, None)
        return found

    def distribution_of(self, package: str) -> tuple[str, str] | None:
        """Name and version of the plugin distribution that a top-level package belongs to."""
        return self.packages.get(package)

    def list_names(self, pattern: str | None = None) -> list[str]:
        """Registered names in natural order; `pattern` is a glob (``*?[``) or a part of the name, in any case."""
        return sorted(matching(self._registrations, pattern), key=natural_key)

    def find(self, term: NameTerm) -> Registration:
        """Look a name up.

        Raises:
            NnplugError: unknown (with suggestions and the broken plugins), ambiguous, or not a recipe that can be read.
        """
        if term.path is not None:
            config = read_file_recipe(term.path)
            return Registration(config, config.name, file=term.path, is_file=True)
        everyone = self._registrations.get(term.name, [])
        found = everyone
        if term.distribution is not None:
            found = [one for one in everyone if normalise_distribution(one.distribution or "") == term.distribution]
        is_like_class = not everyone or term.name.startswith(_CLASS_PREFIXES)
        stock = find_trainer(term.name) if is_like_class else None
        if len(found) > 1 or (found and stock and term.distribution is None):
            raise NnplugError(_ambiguous(term.name, found, stock))
        if found:
            owner = normalise_distribution(found[0].distribution or "")
            return replace(found[0], name=f"{term.name}@{owner}" if len(everyone) > 1 or stock else term.name)
        if stock is None or term.distribution is not None:
            raise UnknownTrainerError(self._unknown(term))
        return stock_registration(stock)

    def resolve(
        self, trainer: str | os.PathLike[str] | TrainerConfig | ResolvedConfig, *, trust_code: bool = False
    ) -> ResolvedConfig:
        """Decide everything about a trainer.

        Args:
            trainer: text as after ``-tr``, the path of a recipe, or a config built in Python.
            trust_code: follow references in files to anywhere.

        Raises:
            NnplugError: see `compose.resolve`; a Python config with the name of a registered trainer.
        """
        if isinstance(trainer, ResolvedConfig):
            return trainer
        if isinstance(trainer, TrainerConfig):
            return compose.resolve_config(self._registration_of(trainer), self, trust_code=trust_code)
        return compose.resolve(os.fspath(trainer), self, trust_code=trust_code)

    def call_plugin(self, record: PluginRecord, hook_name: str, **kwargs: Any) -> Any:
        """Call one hook of one plugin; None where it does not implement the hook."""
        return call_plugin(self.manager, record.module, hook_name, **kwargs)

    def _load(self, entry: EntryPoint) -> PluginRecord:
        name = entry.dist.name if entry.dist else None
        registered = [one for found in self._registrations.values() for one in found if one.distribution == name]
        taken = {one.config.name: one.where or "" for one in registered}
        record, registrations = load_plugin(entry, self.manager, taken)
        for registration in registrations:
            self._registrations.setdefault(registration.config.name, []).append(registration)
        return record

    def _registration_of(self, config: TrainerConfig) -> Registration:
        known = self._registrations.get(config.name, [])
        for registration in known:
            if registration.config == config:
                return registration
        if known:
            raise NnplugError(
                f"TrainerConfig '{config.name}' has the name of a trainer of '{known[0].owner}' ({known[0].where}). "
                "Give it another: config.copy(name=...)"
            )
        reason = reserved_reason(config)
        if find_trainer(config.name):
            reason = f"the name '{config.name}' is that of a class of nnU-Net. Choose another."
        if reason:
            raise NnplugError(f"TrainerConfig '{config.name}': {reason}")
        return Registration(config, config.name)

    def _unknown(self, term: NameTerm) -> str:
        message = f"Unknown trainer '{term}'."
        owners = [
            f"'{one.name}@{normalise_distribution(one.distribution or '')}'"
            for one in self._registrations.get(term.name, [])
        ]
        if owners:
            return f"{message} There is {' and '.join(owners)}."
        if term.name in SETTINGS:
            value = "@NAME" if term.name in CODE_FIELDS else "VALUE"
            return f"{message} It is a field. Write {term.name}={value}."
        match = _FILE_RECIPE.match(term.name)
        known = list(self._registrations)
        if term.name.lower().startswith("nnunet"):
            known += [*stock_trainers(), *external_trainers()]
        near = {name.lower(): name for name in known}.get(term.name.lower())
        near = near or next(iter(get_close_matches(term.name, known, n=1)), None)
        if near:
            message += f" Did you mean '{near}'?"
        elif match:
            message += f" It looks like a recipe given as a file: give the file again, -tr {match[1]}.toml."
        message += " List them with: nnplug trainers."
        return message + describe_failures(self.failures)


@cache
def get_registry() -> Registry:
    """The registry of this process; plugins are loaded when it is first asked for."""
    return Registry()


def stock_registration(stock: StockTrainer) -> Registration:
    """A class of nnU-Net as a config: one that builds on this class."""
    base = None if stock.name == BASE else stock.reference
    config = TrainerConfig(name=stock.name, base_trainer=base, description=stock.description or None)
    return Registration(config, stock.name, file=shorten(str(stock.file)), line=stock.line)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which unet9 comes before unet10, and case does not matter."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def matching(names: Iterable[str], pattern: str | None) -> list[str]:
    """The names that a pattern selects: a glob, or else a part of the name; in any case."""
    if not pattern:
        return list(names)
    glob = pattern.lower() if any(mark in pattern for mark in "*?[") else f"*{pattern.lower()}*"
    return [name for name in names if fnmatchcase(name.lower(), glob)]


def _sorted(entries: Iterable[EntryPoint]) -> list[EntryPoint]:
    return sorted(
        entries, key=lambda entry: (normalise_distribution(entry.dist.name if entry.dist else ""), entry.name)
    )


def _top_level(dist: Distribution) -> set[str]:
    found = set((dist.read_text("top_level.txt") or "").split())
    for file in dist.files or ():
        if len(file.parts) > 1 and file.suffix == ".py" and file.parts[0].isidentifier():
            found.add(file.parts[0])
    return found


def _ambiguous(name: str, found: list[Registration], stock: StockTrainer | None) -> str:
    owners = " and ".join(f"'{one.owner}' ({one.where})" for one in found)
    first = normalise_distribution(found[0].distribution or "")
    if stock:
        where = stock_registration(stock).where
        owners, cure = f"{owners} and is a trainer class ({where})", "rename the class"
    else:
        cure = "uninstall one"
    return f"Trainer '{name}' is registered by {owners}. Use '{name}@{first}' or {cure}."


def describe_failures(failures: list[PluginRecord]) -> str:
    """A sentence for an error about an unknown name; empty where every plugin works."""
    if not failures:
        return ""
    listed = "; ".join(f"{record.title} ({record.reason})" for record in failures)
    count = "One plugin" if len(failures) == 1 else f"{len(failures)} plugins"
    return f" {count} failed to load: {listed}."
