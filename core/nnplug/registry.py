"""Plugins and the trainers they register.

Entry points of the group ``nnplug`` are gone through one plugin at a time. What fails is taken out again and kept as a
record, so that one broken package never hides the others.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from nnplug import compose, hookspecs
from nnplug.compose import Registration, ResolvedConfig
from nnplug.config import TrainerConfig
from nnplug.errors import NnplugError
from nnplug.fields import FIELDS
from nnplug.recipes import read_file_recipe, read_recipe
from nnplug.stock_names import StockTrainer, find_trainer
from nnplug.terms import NameTerm, normalise_distribution

GROUP = "nnplug"
API_VERSION = 1
RESERVED_NAMES = frozenset({"all", "none", "true", "false", *FIELDS})
# Names of nnU-Net's own classes begin like this.
RESERVED_PREFIXES = ("nnUNetTrainer", "nnUNet_")


class PluginError(Exception):
    """Why a plugin is refused; becomes the reason in its record."""


@dataclass(frozen=True)
class PluginRecord:
    """An entry point and what became of it.

    Attributes:
        distribution, version: of the package.
        entry_point: ``name = module``.
        file: of the module, None where it could not be found.
        reason: why it was refused, None where it works.
        traceback: of the failure.
        module: the plugin object, None where it was refused.
        num_trainers, num_recipes: how many it registered in Python, as TOML files.
    """

    distribution: str
    version: str
    entry_point: str
    file: str | None = None
    reason: str | None = None
    traceback: str | None = field(default=None, repr=False)
    module: Any = field(default=None, repr=False)
    num_trainers: int = 0
    num_recipes: int = 0

    @property
    def is_loaded(self) -> bool:
        return self.reason is None

    @property
    def title(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def key(self) -> str:
        return f"{self.distribution}:{self.entry_point}"


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
        self.plugins: tuple[PluginRecord, ...] = tuple(self._load(entry) for entry in self._entries)

    @property
    def failures(self) -> list[PluginRecord]:
        """The plugins that were refused."""
        return [record for record in self.plugins if not record.is_loaded]

    @property
    def registrations(self) -> Mapping[str, tuple[Registration, ...]]:
        """Registrations by name; more than one where the name is ambiguous."""
        return {name: tuple(found) for name, found in self._registrations.items()}

    @cached_property
    def packages(self) -> frozenset[str]:
        """Top-level packages of the distributions that register plugins; nnplug itself is not a plugin."""
        found: set[str] = set()
        for entry in self._entries:
            found.add(entry.module.partition(".")[0])
        for dist in {entry.dist.name: entry.dist for entry in self._entries if entry.dist}.values():
            found.update((dist.read_text("top_level.txt") or "").split())
            for file in dist.files or ():
                if len(file.parts) > 1 and file.suffix == ".py" and file.parts[0].isidentifier():
                    found.add(file.parts[0])
        return frozenset(found - {"nnplug"})

    def find(self, term: NameTerm) -> Registration:
        """Look a name up.

        Raises:
            NnplugError: unknown (with suggestions and the broken plugins), ambiguous, or not a recipe that can be read.
        """
        if term.path is not None:
            config = read_file_recipe(term.path)
            return Registration(config, config.name, file=term.path, is_file=True)
        found = self._registrations.get(term.name, [])
        is_ambiguous = len(found) > 1
        if term.distribution is not None:
            found = [one for one in found if normalise_distribution(one.distribution or "") == term.distribution]
        if len(found) > 1:
            raise NnplugError(_ambiguous(term.name, found))
        if found:
            owner = normalise_distribution(found[0].distribution or "")
            return replace(found[0], name=f"{term.name}@{owner}" if is_ambiguous else term.name)
        stock = find_trainer(term.name) if term.distribution is None else None
        if stock is None:
            raise NnplugError(self._unknown(term))
        return stock_registration(stock)

    def resolve(self, trainer: str | TrainerConfig | ResolvedConfig, *, trust_code: bool = False) -> ResolvedConfig:
        """Decide everything about a trainer.

        Args:
            trainer: text as after ``-tr``, or a config built in Python.
            trust_code: follow references in files to anywhere.

        Raises:
            NnplugError: see `compose.resolve`; a Python config with the name of a registered trainer.
        """
        if isinstance(trainer, ResolvedConfig):
            return trainer
        if isinstance(trainer, TrainerConfig):
            return compose.resolve_config(self._registration_of(trainer), self, trust_code=trust_code)
        return compose.resolve(trainer, self, trust_code=trust_code)

    def list_names(self, pattern: str | None = None) -> list[str]:
        """Registered names in natural order; `pattern` is a glob (``*?[``) or a part of the name, in any case."""
        names = sorted(self._registrations, key=natural_key)
        if not pattern:
            return names
        glob = pattern.lower() if any(mark in pattern for mark in "*?[") else f"*{pattern.lower()}*"
        return [name for name in names if fnmatchcase(name.lower(), glob)]

    def call_plugin(self, record: PluginRecord, hook_name: str, **kwargs: Any) -> Any:
        """Call one hook of one plugin; returns None where it does not implement it."""
        others = [plugin for plugin in self.manager.get_plugins() if plugin is not record.module]
        results = self.manager.subset_hook_caller(hook_name, others)(**kwargs)
        return results[0] if results else None

    def _registration_of(self, config: TrainerConfig) -> Registration:
        for known in self._registrations.get(config.name, []):
            if known.config == config:
                return known
            raise NnplugError(
                f"TrainerConfig '{config.name}' has the name of a trainer of '{known.owner}' ({known.where}). "
                "Give it another: config.copy(name=...)"
            )
        reason = reserved_reason(config.name)
        if reason:
            raise NnplugError(f"TrainerConfig '{config.name}': {reason}")
        return Registration(config, config.name)

    def _load(self, entry: EntryPoint) -> PluginRecord:
        dist = entry.dist
        record = PluginRecord(
            distribution=dist.name if dist else "unknown",
            version=dist.version if dist else "0",
            entry_point=f"{entry.name} = {entry.value}",
        )
        plugin = None
        try:
            plugin = entry.load()
            record = replace(record, file=getattr(plugin, "__file__", None), module=plugin)
            self._register_plugin(plugin, record)
            found = self._collect(record)
        except (Exception, SystemExit) as error:
            if (
                plugin is not None
                and self.manager.is_registered(plugin)
                and self.manager.get_name(plugin) == record.key
            ):
                self.manager.unregister(plugin)
            return replace(record, module=None, reason=_reason(error), traceback=traceback.format_exc())
        for registration in found:
            self._registrations.setdefault(registration.config.name, []).append(registration)
        num_recipes = sum(registration.is_file for registration in found)
        return replace(record, num_trainers=len(found) - num_recipes, num_recipes=num_recipes)

    def _register_plugin(self, plugin: Any, record: PluginRecord) -> None:
        api = getattr(plugin, "NNPLUG_API", API_VERSION)
        if api != API_VERSION:
            raise PluginError(_wrong_api(api))
        if self.manager.is_registered(plugin):
            raise PluginError("registers twice: another entry point names the same module")
        _check_unmarked(plugin)
        self.manager.register(plugin, name=record.key)
        if not self.manager.get_hookcallers(plugin):
            raise PluginError("has no hook. Mark one with @nnplug.hookimpl, for example register_trainers(register)")
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(_misspelt(self.manager, plugin, str(error))) from error

    def _collect(self, record: PluginRecord) -> list[Registration]:
        """What one plugin registers, not yet added."""
        found: list[Registration] = []

        def register(config: TrainerConfig) -> None:
            frame = sys._getframe(1)
            where = shorten(frame.f_code.co_filename)
            _add(found, config, record, where, frame.f_lineno, is_file=False)

        self.call_plugin(record, "register_trainers", register=register)
        folder = self.call_plugin(record, "register_recipes")
        if folder is not None:
            if not Path(folder).is_dir():
                raise PluginError(f"register_recipes returned '{folder}', which is not a folder")
            for path in sorted(Path(folder).glob("*.toml")):
                where = shorten(str(path))
                _add(found, read_recipe(path, where), record, where, None, is_file=True)
        return found

    def _unknown(self, term: NameTerm) -> str:
        known = list(self._registrations)
        message = f"Unknown trainer '{term}'."
        owners = [one.distribution for one in self._registrations.get(term.name, [])]
        if owners:
            return f"{message} '{term.name}' is registered by {' and '.join(f'{owner!r}' for owner in owners)}."
        if term.name.startswith(RESERVED_PREFIXES):
            from nnplug.stock_names import external_trainers, stock_trainers

            known += [*stock_trainers(), *external_trainers()]
        by_case = {name.lower(): name for name in known}
        near = by_case.get(term.name.lower()) or next(iter(get_close_matches(term.name, known, n=1)), None)
        if near:
            message += f" Did you mean '{near}'?"
        message += " List them with: nnplug trainers."
        if len(self.failures) == 1:
            message += f" One plugin failed to load: {self.failures[0].title} ({self.failures[0].reason})."
        elif self.failures:
            listed = "; ".join(f"{record.title} ({record.reason})" for record in self.failures)
            message += f" {len(self.failures)} plugins failed to load: {listed}."
        return message


@cache
def get_registry() -> Registry:
    """The registry of this process; plugins are loaded when it is first asked for."""
    return Registry()


def stock_registration(stock: StockTrainer) -> Registration:
    """A class of nnU-Net as a config: one that builds on this class."""
    base = None if stock.name == "nnUNetTrainer" else stock.reference
    config = TrainerConfig(name=stock.name, base_trainer=base, description=stock.description or None)
    return Registration(config, stock.name, file=shorten(str(stock.file)), line=stock.line)


def reserved_reason(name: str) -> str | None:
    """Why a trainer can not have this name, None where it can."""
    if name in RESERVED_NAMES:
        return f"the name '{name}' is reserved: it means something else after -tr. Choose another."
    if name.startswith(RESERVED_PREFIXES):
        return f"the name '{name}' is reserved: nnU-Net's own classes begin like this. Choose another."
    return None


def shorten(file: str) -> str:
    """A path below the folder it is imported from, for messages."""
    roots = [root for root in sys.path if root and file.startswith(root.rstrip("/") + "/")]
    return file[len(max(roots, key=len).rstrip("/")) + 1 :] if roots else file


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which unet9 comes before unet10, and case does not matter."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _sorted(entries: Iterable[EntryPoint]) -> list[EntryPoint]:
    return sorted(
        entries, key=lambda entry: (normalise_distribution(entry.dist.name if entry.dist else ""), entry.name)
    )


def _add(
    found: list[Registration],
    config: TrainerConfig,
    record: PluginRecord,
    file: str,
    line: int | None,
    *,
    is_file: bool,
) -> None:
    if not isinstance(config, TrainerConfig):
        raise PluginError(f"register() takes a nnplug.TrainerConfig, got {type(config).__name__} ({file}:{line})")
    if any(other.config.name == config.name for other in found):
        raise PluginError(f"registers the trainer '{config.name}' twice")
    reason = reserved_reason(config.name)
    if reason:
        raise PluginError(reason.rstrip("."))
    found.append(Registration(config, config.name, record.distribution, record.version, file, line, is_file=is_file))


def _reason(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, (PluginError, NnplugError, ModuleNotFoundError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _ambiguous(name: str, found: list[Registration]) -> str:
    owners = " and ".join(f"'{one.owner}' ({one.where})" for one in found)
    first = normalise_distribution(found[0].distribution or "")
    return f"Trainer '{name}' is registered by {owners}. Use '{name}@{first}' or uninstall one."


def _wrong_api(api: Any) -> str:
    cure = (
        "Install a newer nnplug"
        if isinstance(api, int) and api > API_VERSION
        else "Install a newer version of the plugin"
    )
    return f"is written for plugin API {api} of nnplug; this nnplug has API {API_VERSION}. {cure}"


def _check_unmarked(plugin: Any) -> None:
    """Refuse a function that has a hook's name, or nearly, and was not marked: it would never be called."""
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "nnplug_spec")]
    for name, value in list(vars(plugin).items()) if isinstance(plugin, ModuleType) else []:
        if (
            not callable(value)
            or hasattr(value, "nnplug_impl")
            or getattr(value, "__module__", None) != plugin.__name__
        ):
            continue
        meant = name if name in hooks else None
        if meant is None and name.startswith("register_"):
            meant = next(iter(get_close_matches(name, hooks, n=1, cutoff=0.8)), None)
        if meant:
            raise PluginError(f"'{name}' is not marked as a hook. Write @nnplug.hookimpl above def {meant}")


def _misspelt(manager: pluggy.PluginManager, plugin: Any, text: str) -> str:
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "nnplug_spec")]
    for caller in manager.get_hookcallers(plugin) or []:
        if not caller.has_spec():
            near: Callable[..., list[str]] = get_close_matches
            meant = near(caller.name, hooks, n=1)
            return f"there is no hook '{caller.name}'" + (f", did you mean '{meant[0]}'?" if meant else "")
    return text
