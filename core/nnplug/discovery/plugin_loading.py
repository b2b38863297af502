"""Loading one plugin: import, checks, registration; and the record of what became of it."""

from __future__ import annotations

import inspect
import sys
import traceback
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from nnplug import hookspecs
from nnplug.composition.component import REFERENCE
from nnplug.composition.compose import Registration
from nnplug.composition.fields import FIELDS
from nnplug.composition.recipes import read_recipe
from nnplug.config import TrainerConfig
from nnplug.errors import NnplugError
from nnplug.hookspecs import API_VERSION

RESERVED_NAMES = frozenset({"all", "none", "true", "false"})
HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, "nnplug_spec"))
#: Hooks that register a class of nnU-Net's data pipeline, by what the class is.
CLASS_HOOKS = {"planner": "register_planners", "preprocessor": "register_preprocessors"}


class PluginError(Exception):
    """Why a plugin is refused; becomes the reason in its record."""


@dataclass(frozen=True)
class ClassRegistration:
    """A planner or preprocessor of a plugin.

    Attributes:
        kind: a key of `CLASS_HOOKS`.
        target: ``package.module:Class``.
        distribution, version: of the plugin.
        where: file and line of the registration.
    """

    kind: str
    target: str
    distribution: str
    version: str
    where: str

    @property
    def name(self) -> str:
        """By which it is chosen, and which plans hold: that of the class."""
        return self.target.rpartition(":")[2]

    @property
    def owner(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"


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
        classes: planners and preprocessors that it registered.
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
    classes: tuple[ClassRegistration, ...] = ()

    @property
    def is_loaded(self) -> bool:
        """It was not refused."""
        return self.reason is None

    @property
    def title(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    @property
    def key(self) -> str:
        """What tells it from other entry points."""
        return f"{self.distribution}: {self.entry_point}"


def load_plugin(
    entry: EntryPoint, manager: pluggy.PluginManager, taken: dict[str, str]
) -> tuple[PluginRecord, list[Registration]]:
    """Load one entry point.

    Args:
        entry: the entry point.
        manager: gets the plugin; where the plugin is refused it is taken out again.
        taken: names that other entry points of the same distribution registered, with the place.

    Returns:
        Its record and its trainers; none where it is refused.
    """
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
        _register(plugin, record, manager)
        found = _collect(record, manager)
        _check_names(found, taken)
        record = replace(record, classes=_collect_classes(record, manager))
    except (Exception, SystemExit) as error:
        if plugin is not None and manager.get_plugin(record.key) is plugin:
            manager.unregister(plugin)
        refused = replace(record, module=None, classes=())
        return replace(refused, reason=_reason(error), traceback=traceback.format_exc()), []
    num_recipes = sum(registration.is_file for registration in found)
    return replace(record, num_trainers=len(found) - num_recipes, num_recipes=num_recipes), found


def call_plugin(manager: pluggy.PluginManager, plugin: Any, hook_name: str, **kwargs: Any) -> Any:
    """Call one hook of one plugin; None where it does not implement the hook."""
    others = [other for other in manager.get_plugins() if other is not plugin]
    results = manager.subset_hook_caller(hook_name, others)(**kwargs)
    return results[0] if results else None


def reserved_reason(config: TrainerConfig) -> str | None:
    """Why a trainer can not have its name, None where it can: a field's name is for a trainer that sets the field."""
    name = config.name
    if name in RESERVED_NAMES or (name in FIELDS and name not in config.set_fields()):
        return f"the name '{name}' is reserved: it means something else after -tr. Choose another."
    return None


def shorten(file: str, package: ModuleType | None = None) -> str:
    """A path below the folder that it is imported from, for messages."""
    home = getattr(package, "__file__", None)
    roots = [str(Path(home).parent.parent)] if home else []
    for root in [*roots, *sorted(filter(None, sys.path), key=len, reverse=True)]:
        if Path(file).is_relative_to(root):
            return str(Path(file).relative_to(root))
    return file


def _register(plugin: Any, record: PluginRecord, manager: pluggy.PluginManager) -> None:
    api = getattr(plugin, "NNPLUG_API", API_VERSION)
    if type(api) is not int or api != API_VERSION:
        raise PluginError(_wrong_api(api))
    if manager.is_registered(plugin):
        raise PluginError(f"registers twice: '{manager.get_name(plugin)}' names the same module")
    _check_unmarked(plugin)
    try:
        manager.register(plugin, name=record.key)
    except pluggy.PluginValidationError as error:
        raise PluginError(_wrong_arguments(plugin) or str(error)) from error
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise PluginError("has no hook. Mark one with @nnplug.hookimpl, for example register_trainers(register)")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        for caller in callers:
            if not caller.has_spec():
                near = get_close_matches(caller.name, HOOKS, n=1)
                hint = f". Did you mean '{near[0]}'?" if near else f". The hooks are: {', '.join(HOOKS)}"
                raise PluginError(f"there is no hook '{caller.name}'{hint}") from error
        raise


def _wrong_arguments(plugin: Any) -> str | None:
    for hook in HOOKS:
        function = getattr(plugin, hook, None)
        if function is None or not hasattr(function, "nnplug_impl"):
            continue
        known = list(inspect.signature(getattr(hookspecs, hook)).parameters)
        unknown = [name for name in inspect.signature(function).parameters if name not in known]
        if unknown:
            return f"{hook}({', '.join(known)}) has no argument '{unknown[0]}'"
    return None


def _wrong_api(api: Any) -> str:
    if isinstance(api, bool) or not isinstance(api, int):
        return f"NNPLUG_API is {api!r}, not a number. Write NNPLUG_API = {API_VERSION}"
    newer = "Install a newer nnplug: pip install -U nnplug"
    cure = newer if api > API_VERSION else "Install a newer version of the plugin"
    return f"it is written for plugin API {api} of nnplug, and this nnplug has API {API_VERSION}. {cure}"


def _check_unmarked(plugin: Any) -> None:
    """Refuse a function that has a hook's name, or nearly, and was not marked: it would never be called."""
    for name, value in list(vars(plugin).items()) if isinstance(plugin, ModuleType) else []:
        if not callable(value) or hasattr(value, "nnplug_impl"):
            continue
        if getattr(value, "__module__", None) != plugin.__name__:
            continue
        near = get_close_matches(name, HOOKS, n=1, cutoff=0.85) if name.startswith("register_") else []
        for meant in [name] if name in HOOKS else near:
            raise PluginError(f"'{name}' is not marked as a hook. Write @nnplug.hookimpl above def {meant}")


def _collect(record: PluginRecord, manager: pluggy.PluginManager) -> list[Registration]:
    """The trainers of one plugin."""
    found: list[Registration] = []
    package = sys.modules.get(getattr(record.module, "__name__", "").partition(".")[0])

    def add(config: TrainerConfig, file: str, line: int | None) -> None:
        found.append(
            Registration(config, config.name, record.distribution, record.version, file, line, is_file=line is None)
        )

    def register(config: TrainerConfig) -> None:
        caller = sys._getframe(1)
        where = shorten(caller.f_code.co_filename, package)
        if not isinstance(config, TrainerConfig):
            kind = type(config).__name__
            raise PluginError(f"register() takes a nnplug.TrainerConfig, got {kind} ({where}:{caller.f_lineno})")
        add(config, where, caller.f_lineno)

    call_plugin(manager, record.module, "register_trainers", register=register)
    folder = call_plugin(manager, record.module, "register_recipes")
    if folder is not None:
        if not isinstance(folder, (str, Path)) or not Path(folder).is_dir():
            raise PluginError(f"register_recipes returned {str(folder)!r}, which is not a folder")
        for path in sorted(Path(folder).glob("*.toml")):
            where = shorten(str(path), package)
            add(read_recipe(path, where), where, None)
    return found


def _collect_classes(record: PluginRecord, manager: pluggy.PluginManager) -> tuple[ClassRegistration, ...]:
    """The planners and preprocessors of one plugin."""
    found: dict[tuple[str, str], ClassRegistration] = {}
    package = sys.modules.get(getattr(record.module, "__name__", "").partition(".")[0])

    def register(reference: str, kind: str) -> None:
        caller = sys._getframe(1)
        where = f"{shorten(caller.f_code.co_filename, package)}:{caller.f_lineno}"
        if not isinstance(reference, str) or not REFERENCE.match(reference) or "." in reference.partition(":")[2]:
            raise PluginError(
                f"register() of {CLASS_HOOKS[kind]} takes 'package.module:Class', got {reference!r} ({where})"
            )
        one = ClassRegistration(kind, reference, record.distribution, record.version, where)
        if (kind, one.name) in found:
            raise PluginError(f"registers '{one.name}' twice ({found[kind, one.name].where} and {where})")
        found[kind, one.name] = one

    for kind, hook in CLASS_HOOKS.items():
        call_plugin(manager, record.module, hook, register=partial(register, kind=kind))
    return tuple(found.values())


def _check_names(found: list[Registration], taken: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for registration in found:
        name = registration.config.name
        reason = reserved_reason(registration.config)
        if reason:
            raise PluginError(f"{registration.where}: {reason}")
        if name in seen:
            raise PluginError(f"registers '{name}' twice ({seen[name]} and {registration.where})")
        if name in taken:
            raise PluginError(f"registers '{name}' twice (also in {taken[name]} of this package)")
        seen[name] = registration.where or ""


def _reason(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, (PluginError, NnplugError, ModuleNotFoundError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
