"""Checks of single values: each returns the value in its normal form or raises `Invalid`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from nnplug.composition.values import check_word
from nnplug.errors import NnplugError


class Invalid(Exception):
    """A value that a field does not take: what was expected, and below which key."""

    def __init__(self, expected: str, value: Any, key: str = "") -> None:
        super().__init__(expected)
        self.expected, self.value, self.key = expected, value, key

    def explain(self, got: str | None = None) -> str:
        """The rest of a sentence that begins with the field; `got` is how the user wrote the value."""
        return f"expected {self.expected}, got {got if got is not None else repr(self.value)}."


class Refused(Invalid):
    """A key that may not be set at all, whatever the value."""

    def explain(self, got: str | None = None) -> str:  # noqa: ARG002
        """The reason, which does not depend on the value."""
        return self.expected


def whole(minimum: int, maximum: int | None = None) -> Callable[[Any], int]:
    """A check for integers; a bool is none."""
    expected = f"an integer >= {minimum}" + (f" and <= {maximum}" if maximum is not None else "")

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise Invalid(expected, value)
        number = int(value)
        if number < minimum or (maximum is not None and number > maximum):
            raise Invalid(expected, value)
        return number

    return check


def real(expected: str, accepts: Callable[[float], bool]) -> Callable[[Any], float]:
    """A check for finite numbers; a bool is none."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Invalid(expected, value)
        if not math.isfinite(value) or not accepts(float(value)):
            raise Invalid(expected, value)
        return float(value)

    return check


def boolean(value: Any) -> bool:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise Invalid("true or false", value)
    return value


def text(value: Any) -> str:
    """Accept any text."""
    if not isinstance(value, str):
        raise Invalid("text", value)
    return value


def _integers(value: Any, expected: str) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise Invalid(expected, value)
    items = tuple(value)
    if any(isinstance(item, bool) or not isinstance(item, Integral) for item in items):
        raise Invalid(expected, value)
    return tuple(int(item) for item in items)


def dimensions(value: Any) -> tuple[int, ...]:
    """Accept a subset of (2, 3)."""
    expected = "dimensions out of 2 and 3"
    dims = tuple(sorted(_integers(value, expected)))
    if dims not in ((2,), (3,), (2, 3)):
        raise Invalid(expected, value)
    return dims


def axes(value: Any) -> tuple[int, ...]:
    """Accept distinct spatial axes out of 0, 1, 2; none of them is ()."""
    expected = "different axes out of 0, 1 and 2"
    found = tuple(sorted(_integers(value, expected)))
    if len(set(found)) != len(found) or not set(found) <= {0, 1, 2}:
        raise Invalid(expected, value)
    return found


def size(value: Any) -> tuple[int, ...]:
    """Accept two or three sides in voxels."""
    expected = "2 or 3 integers >= 1"
    sides = _integers(value, expected)
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise Invalid(expected, value)
    return sides


def plain_copy(value: Any, key: str) -> Any:
    """Copy what JSON can hold; tuples become lists."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping) and all(isinstance(name, str) and name and "." not in name for name in value):
        return {name: plain_copy(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_copy(item, key) for item in value]
    raise Invalid("a plain value (number, text, true, false, list, table)", value, key)


def did_you_mean(word: str, known: Any, *, cutoff: float = 0.7) -> str:
    """A clause with the nearest known word, or one that has ``word`` as a part; empty where there is none."""
    near = get_close_matches(word, list(known), n=1, cutoff=cutoff) or [one for one in known if word in one.split("_")]
    return f" (did you mean {near[0]}?)" if near else ""


def check_name(name: Any) -> str:
    """Accept a trainer's name: nnU-Net makes folders of it and splits them at double underscores."""
    if not isinstance(name, str) or not name:
        raise Invalid("a name", name)
    try:
        check_word(name, "")
    except NnplugError:
        raise Invalid(
            "a name of letters, digits, '.', '-' and single '_' that begins with a letter and does not end with '_'",
            name,
        ) from None
    return name
