"""A piece of code with its arguments, as the code fields of a config hold it."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any

from nnplug.composition.checks import Invalid
from nnplug.errors import NnplugError

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")
_FACTORIES = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial)


class Component:
    """A class or factory together with keyword arguments for it. Can not be changed after it is made.

    Args:
        target: an importable callable, or a reference ``"package.module:attribute"`` that is imported when a trainer is
            built and not before.
        **kwargs: handed to the callable in addition to what nnplug passes. The key ``use`` is taken.

    Example:
        >>> Component("torch.optim:AdamW", betas=(0.9, 0.98))
        Component('torch.optim:AdamW', betas=(0.9, 0.98))
    """

    __slots__ = ("_kwargs", "_target")
    _target: Callable[..., Any] | str
    _kwargs: dict[str, Any]

    def __init__(self, target: Callable[..., Any] | str, /, **kwargs: Any) -> None:
        if isinstance(target, str) and not REFERENCE.match(target):
            raise NnplugError(f"Component: expected a reference 'package.module:attribute', got {target!r}.")
        if not isinstance(target, str) and not callable(target):
            raise NnplugError(f"Component: expected a callable or 'package.module:attribute', got {target!r}.")
        if "use" in kwargs:
            raise NnplugError("Component: the argument name 'use' is taken: it holds the reference in recipes.")
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_kwargs", kwargs)

    @property
    def target(self) -> Callable[..., Any] | str:
        """The callable, or the reference to it."""
        return self._target

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments (read only)."""
        return MappingProxyType(self._kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Component can not be changed; make another one with the new {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Component):
            return NotImplemented
        return self._target == other._target and self._kwargs == other._kwargs

    def __hash__(self) -> int:
        return hash(self._target)

    def __repr__(self) -> str:
        target = repr(self._target) if isinstance(self._target, str) else getattr(self._target, "__qualname__", "?")
        return f"Component({', '.join([target, *(f'{key}={value!r}' for key, value in self._kwargs.items())])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _component, (self._target, self._kwargs)


def _component(target: Callable[..., Any] | str, kwargs: dict[str, Any]) -> Component:
    return Component(target, **kwargs)


def factory(value: Any) -> Component:
    """Bring a code field into its normal form.

    Args:
        value: a component, a reference, a callable, or a table with the key ``use`` (from a recipe).

    Raises:
        Invalid: it is none of these.
    """
    if isinstance(value, Component):
        return value
    if isinstance(value, Mapping):
        arguments = deepcopy(dict(value))
        reference = arguments.pop("use", None)
        if not isinstance(reference, str) or not REFERENCE.match(reference):
            raise Invalid("'package.module:attribute'", reference, "use")
        return _component(reference, arguments)
    if isinstance(value, str) and not REFERENCE.match(value):
        raise Invalid("'package.module:attribute'", value)
    if not isinstance(value, str) and not callable(value):
        raise Invalid("'package.module:attribute', a table with the key use, a callable or a Component", value)
    return Component(value)


def factory_or_finished(value: Any) -> Any:
    """As `factory`; an object with a ``__call__`` of its own, such as a loss module, is finished and stays as it is."""
    is_factory = isinstance(value, (Component, Mapping, str, *_FACTORIES)) or not callable(value)
    return factory(value) if is_factory else value
