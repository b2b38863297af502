"""nnU-Net's trainer classes, found by reading their sources: importing them would import torch.

Classes in the folders of the variable ``nnUNet_extTrainer`` count as well, as they do for nnU-Net.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nnplug.composition.references import EXTERNAL_TRAINERS
from nnplug.composition.signatures import imported_module
from nnplug.errors import NnplugError

BASE = "nnUNetTrainer"
STOCK_FOLDER = Path(__file__).parents[1] / "_stock"
_PACKAGE = "nnunetv2.training.nnUNetTrainer"
_MAX_REEXPORTS = 5

#: What a trainer class decides by overriding a method of nnUNetTrainer: the fields that the method stands for.
SEAMS = {
    "_build_loss": ("loss_fn",),
    "build_network_architecture": ("network_builder",),
    "configure_optimizers": ("optimizer", "lr_scheduler"),
    "get_training_transforms": ("training_transforms",),
    "get_dataloaders": ("sampler",),
}
#: What it decides in __init__: fields that are attributes of nnUNetTrainer under the same name.
ATTRIBUTES = (
    "enable_deep_supervision",
    "initial_lr",
    "weight_decay",
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "oversample_foreground_percent",
    "probabilistic_oversampling",
    "save_every",
)


@dataclass(frozen=True)
class StockTrainer:
    """A trainer class of nnU-Net, or of a folder in nnUNet_extTrainer.

    Attributes:
        name: of the class.
        reference: to load it with.
        file, line: where it is defined.
        description: first line of its docstring.
        sets: config fields that the class decides, by field the class that does (itself or one it inherits from).
    """

    name: str
    reference: str
    file: Path
    line: int
    description: str
    sets: Mapping[str, str]


@cache
def stock_trainers() -> Mapping[str, StockTrainer]:
    """Trainer classes that come with nnU-Net, by name. Empty where nnU-Net is not installed."""
    folder = _module_file(_PACKAGE)
    if folder is None:
        return {}
    return dict(_find_trainers(folder.parent, _PACKAGE))


def external_trainers() -> Mapping[str, StockTrainer]:
    """Trainer classes in the folders of nnUNet_extTrainer (other than nnplug's own), by name; the first folder wins."""
    found: dict[str, StockTrainer] = {}
    for folder in _external_folders():
        for name, trainer in _find_external(folder).items():
            found.setdefault(name, trainer)
    return found


def find_trainer(name: str) -> StockTrainer | None:
    """The trainer class with this name, as nnU-Net would find it."""
    return stock_trainers().get(name) or external_trainers().get(name)


def load_external(name: str) -> Any:
    """Import a trainer class from the folders of nnUNet_extTrainer.

    Raises:
        NnplugError: no such class there, or another module has the same name.
    """
    trainer = external_trainers().get(name)
    if trainer is None:
        raise NnplugError(f"No folder in the variable {EXTERNAL_TRAINERS} has a trainer class '{name}'.")
    folder = next(folder for folder in _external_folders() if trainer.file.is_relative_to(folder))
    module_name = ".".join(trainer.file.relative_to(folder).with_suffix("").parts)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise NnplugError(f"{trainer.file}: importing it failed ({type(error).__name__}: {error}).") from error
    finally:
        sys.path.remove(str(folder))
    if module.__file__ is None or not os.path.samefile(module.__file__, trainer.file):
        raise NnplugError(
            f"{trainer.file}: another module is named '{module_name}' ({module.__file__}). Rename the file."
        )
    return getattr(module, name)


def fields_set_by(target: Any) -> Mapping[str, str]:
    """Config fields that a base trainer decides itself: field to the class that does.

    Args:
        target: the class, or a reference to it.
    """
    if isinstance(target, type):
        return _sets_of_class(target)
    if not isinstance(target, str):
        return {}
    module, _, name = target.partition(":")
    if module == EXTERNAL_TRAINERS:
        trainer = external_trainers().get(name)
        return trainer.sets if trainer else {}
    file = _module_file(module)
    return _sets_of(file, module, name, None) if file else {}


def _sets_of_class(target: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for owner in target.__mro__:
        if owner.__name__ == BASE:
            break
        for method in owner.__dict__:
            for field in SEAMS.get(method, ()):
                found.setdefault(field, owner.__name__)
        source = _module_file(owner.__module__)
        definition = _classes(source).get(owner.__name__) if source else None
        for field in _attributes_set(definition) if definition else ():
            found.setdefault(field, owner.__name__)
    return found


def _external_folders() -> list[Path]:
    named = os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep)
    folders = [Path(name.strip()).resolve() for name in named if name.strip()]
    return [folder for folder in folders if folder.is_dir() and folder != STOCK_FOLDER.resolve()]


@cache
def _find_external(folder: Path) -> Mapping[str, StockTrainer]:
    return dict(_find_trainers(folder, None))


def _find_trainers(folder: Path, package: str | None) -> Iterator[tuple[str, StockTrainer]]:
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        if any(part.startswith((".", "__")) for part in parts):
            continue
        module = ".".join(([package] if package else []) + list(parts))
        for name, definition in _classes(file).items():
            if name.startswith(("_", "Abstract")) or not _is_trainer(file, module, name, folder):
                continue
            reference = f"{module if package else EXTERNAL_TRAINERS}:{name}"
            description = (ast.get_docstring(definition) or "").strip().partition("\n")[0]
            sets = _sets_of(file, module, name, None if package else folder)
            yield name, StockTrainer(name, reference, file, definition.lineno, description, sets)


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(file).body if isinstance(node, ast.ClassDef)}


def _imports(file: Path, module: str) -> dict[str, tuple[str, str]]:
    """Names that a file imports from modules: local name to (module, name there)."""
    found = {}
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom):
            origin = imported_module(node, module, file)
            for alias in node.names:
                found[alias.asname or alias.name] = (origin, alias.name)
    return found


def _bases(file: Path, module: str, name: str, folder: Path | None) -> Iterator[tuple[Path, str, str]]:
    """The classes that a class inherits from, as (file, module, name), as far as their sources can be found."""
    definition = _classes(file).get(name)
    for base in definition.bases if definition else []:
        base_name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        origin, origin_name = _imports(file, module).get(base_name, (module, base_name))
        origin_file = file if origin == module else _module_file(origin, folder)
        found = _followed(origin_file, origin, origin_name, folder, _MAX_REEXPORTS)
        if found is not None:
            yield found


def _followed(
    file: Path | None, module: str, name: str, folder: Path | None, steps: int
) -> tuple[Path, str, str] | None:
    """Where a class is defined that a module may only pass on; None where the source can not be found."""
    if file is None:
        return None
    again = None if name in _classes(file) else _imports(file, module).get(name)
    if again is None or steps == 0:
        return file, module, name
    return _followed(_module_file(again[0], folder), *again, folder, steps - 1)


def _is_trainer(file: Path, module: str, name: str, folder: Path | None) -> bool:
    if name == BASE:
        return True
    return any(_is_trainer(*base, folder) for base in _bases(file, module, name, folder))


def _sets_of(file: Path, module: str, name: str, folder: Path | None) -> dict[str, str]:
    definition = _classes(file).get(name)
    if definition is None or name == BASE:
        return {}
    found: dict[str, str] = {}
    for node in definition.body:
        if isinstance(node, ast.FunctionDef):
            for field in SEAMS.get(node.name, ()):
                found[field] = name
    for field in _attributes_set(definition):
        found[field] = name
    for base in _bases(file, module, name, folder):
        found = {**_sets_of(*base, folder), **found}
    return found


def _attributes_set(definition: ast.ClassDef) -> list[str]:
    found = []
    for function in definition.body:
        if not isinstance(function, ast.FunctionDef) or function.name != "__init__":
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in ATTRIBUTES:
                found.append(node.attr)
    return found


@cache
def _module_file(module: str, folder: Path | None = None) -> Path | None:
    """The source of a module, found without importing its packages."""
    root, *rest = module.split(".")
    if folder is not None:
        inside = _below(folder, [root, *rest])
        if inside is not None:
            return inside
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin:
        return Path(spec.origin)
    for location in spec.submodule_search_locations or []:
        found = _below(Path(location), rest)
        if found is not None:
            return found
    return None


def _below(folder: Path, parts: list[str]) -> Path | None:
    path = folder.joinpath(*parts)
    for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if candidate.is_file():
            return candidate
    return None
