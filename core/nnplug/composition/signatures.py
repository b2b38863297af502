"""The arguments of code that is only referred to, read from its source: torch need not be imported to show them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from nnplug.composition.checks import did_you_mean
from nnplug.errors import NnplugError

_MOST_STEPS = 6  # from a package's re-export, or from a subclass, to where the arguments are


@dataclass(frozen=True)
class Signature:
    """What a class or function is called with.

    Attributes:
        names: everything that can be passed by name.
        defaults: source text of the default by name, of those that have one.
        takes_any: there is a ``**kwargs``.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, str]
    takes_any: bool


def read_signature(target: Callable[..., Any] | str) -> Signature | None:
    """The signature of a callable or of a reference ``"package.module:attribute"``; None where it can not be read."""
    if isinstance(target, str):
        module, _, name = target.partition(":")
        return _of_definition(module, name, _MOST_STEPS)
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    named = [one for one in found if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return Signature(
        tuple(one.name for one in named),
        {one.name: repr(one.default) for one in named if one.default is not one.empty},
        any(one.kind is one.VAR_KEYWORD for one in found),
    )


def check_exists(ref: str) -> None:
    """Refuse a reference to what is surely not there; without importing, some can not be told from a typo.

    Raises:
        NnplugError: there is no such module, or its source binds no such name.
    """
    module, _, name = ref.partition(":")
    root = module.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        raise NnplugError(
            f"'{ref}': there is no module '{root}'. Is its package installed? A module of your own is found through "
            "PYTHONPATH."
        )
    path = _source_file(module)
    bound = _bound_names(path) if path is not None else None
    if bound is not None and name.partition(".")[0] not in bound:
        raise NnplugError(f"'{ref}': '{module}' has no '{name}'{did_you_mean(name, bound)}.")


def _bound_names(path: Path) -> list[str] | None:
    """Names of a module's own, None where its source does not tell them all."""
    names: list[str] = []
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif not isinstance(node, ast.Expr):  # an if, a try, a loop: what runs decides
            return None
    return None if {"*", "__getattr__"} & set(names) else names


def _of_definition(module: str, name: str, steps: int) -> Signature | None:
    """Look a name up in the source of a module, following imports and base classes."""
    path = _source_file(module)
    if path is None or steps == 0:
        return None
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _of_arguments(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(node, module, steps)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) in (name, "*"):
                    wanted = name if alias.name == "*" else alias.name
                    found = _of_definition(imported_module(node, module, path), wanted, steps - 1)
                    if found is not None:
                        return found
    return None


def _of_class(node: ast.ClassDef, module: str, steps: int) -> Signature | None:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return _of_arguments(member.args, is_method=True)
    if len(node.bases) == 1 and isinstance(node.bases[0], ast.Name):
        return _of_definition(module, node.bases[0].id, steps - 1)
    return None


def _of_arguments(arguments: ast.arguments, *, is_method: bool = False) -> Signature:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip([one.arg for one in positional][::-1], arguments.defaults[::-1], strict=False))
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    defaults.update({one.arg: default for one, default in pairs if default is not None})
    itself = positional[:1] if is_method else []
    names = [one.arg for one in [*arguments.args, *arguments.kwonlyargs] if one not in itself]
    return Signature(
        tuple(names),
        {name: ast.unparse(defaults[name]) for name in names if name in defaults},
        arguments.kwarg is not None,
    )


def _source_file(module: str) -> Path | None:
    """The file of a module; unlike ``find_spec`` alone this imports no package above it."""
    root, *rest = module.split(".")
    spec: ModuleSpec | None = importlib.util.find_spec(root)
    for part in rest:
        if spec is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def imported_module(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The full name of the module that an import in ``module``, the file at ``path``, takes names from."""
    if node.level == 0:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])
