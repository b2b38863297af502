"""nnU-Net's classes by name: planners, preprocessors, fingerprint extractors."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnplug.errors import NnplugError

T = TypeVar("T")


def find_class(name: str, base: type[T], package: str) -> type[T]:
    """The class ``name`` of ``nnunetv2.PACKAGE``.

    Raises:
        NnplugError: there is none that derives from ``base``; those that there are are named.
    """
    found = _search(name, package)
    if isinstance(found, type) and issubclass(found, base):
        return found
    known = [base.__name__, *sorted(one.__name__ for one in _derived(base))]
    near = get_close_matches(name, known, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    raise NnplugError(f"nnU-Net has no {base.__name__} '{name}'.{meant} It has {', '.join(dict.fromkeys(known))}.")


def list_classes(base: type[T], package: str) -> list[type[T]]:
    """``base`` and every class of ``nnunetv2.PACKAGE`` that derives from it."""
    _search("", package)
    return [base, *(one for one in _derived(base) if one.__module__.startswith(f"nnunetv2.{package}."))]


def _search(name: str, package: str) -> Any:
    """The class, or None; then every module has been imported."""
    folder = Path(nnunetv2.__path__[0], *package.split("."))
    return recursive_find_python_class(str(folder), name, f"nnunetv2.{package}")


def _derived(base: type[Any]) -> Iterator[type[Any]]:
    for one in base.__subclasses__():
        yield one
        yield from _derived(one)
