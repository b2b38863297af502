"""Checks of the settings that a recipe or ``-tr ...+loss_fn.k=5`` gives to a component."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nnplug import NnplugError


def check_setting(name: str, value: Any, expected: str, accepts: Callable[[float], bool]) -> None:
    """Refuse a setting that is no finite number or out of range.

    Args:
        name: field and setting, for example ``loss_fn.k``.
        value: what was given.
        expected: what it takes, in words.
        accepts: whether a number is in the range.

    Raises:
        NnplugError: it names the setting, what it takes and what was given.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not accepts(value):
        raise NnplugError(f"{name}: expected {expected}, got {value!r}.")


def check_not_negative(name: str, value: Any) -> None:
    """:func:`check_setting` for numbers >= 0."""
    check_setting(name, value, "a number >= 0", lambda number: number >= 0)


def check_positive(name: str, value: Any) -> None:
    """:func:`check_setting` for numbers > 0."""
    check_setting(name, value, "a number > 0", lambda number: number > 0)
