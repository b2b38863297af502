"""Values as they are spelled in trainer names: text to value and back.

One value has one spelling, so that equal trainers have equal folder names: integers, the shortest float without ``+``
or padding in its exponent, ``true``/``false``, ``none``, words, and ``40x56x40`` for tuples.
"""

from __future__ import annotations

import re
from typing import Any

from nnplug.errors import NnplugError

_INTEGER = re.compile(r"-?[0-9]+\Z")
_FLOAT = re.compile(r"-?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(e-?[0-9]+)?\Z", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
_CONSTANTS = {"true": True, "false": False, "none": None}
# Above this, a float no longer holds every integer, and its spelling in digits is longer than in powers of ten.
_LARGEST_WHOLE_FLOAT = 10**15


def parse_value(text: str, where: str) -> Any:
    """Read a value whose type is not known beforehand, such as a component's own setting.

    Args:
        text: the part of an assignment after ``=``.
        where: the part before it, for the message.

    Returns:
        bool, None, int, float, str or a tuple of numbers. A float without a fraction becomes an integer: ``2.0`` and
        ``2`` are one value and so one name.

    Raises:
        NnplugError: no value is spelled like this.
    """
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    number = parse_number(text)
    if number is not None:
        return number
    parts = text.split("x")
    if len(parts) > 1:
        # A trailing x marks a tuple of one: "3x".
        numbers = [parse_number(part) for part in (parts[:-1] if len(parts) == 2 and not parts[1] else parts)]
        if all(number is not None for number in numbers):
            return tuple(numbers)
    check_word(text, where)
    return text


def parse_number(text: str) -> int | float | None:
    """Return the number that `text` spells, None where it spells none."""
    if _INTEGER.match(text):
        return int(text)
    if not _FLOAT.match(text):
        return None
    number = float(text)
    if abs(number) == float("inf"):
        return None
    if number.is_integer() and abs(number) < _LARGEST_WHOLE_FLOAT:
        return int(number)
    return number


def check_word(text: str, where: str) -> None:
    """Refuse text that can not stand in a folder name of nnU-Net."""
    if not _WORD.match(text) or "__" in text or text.endswith("_"):
        raise NnplugError(
            f"{where}: {text!r} is not a value. Write a number, true, false, none, sizes such as 40x56x40, or a "
            "word of letters, digits, '.', '-' and single '_' that begins with a letter and does not end with '_'."
        )


def format_value(value: Any) -> str:
    """Spell a value as `parse_value` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, (tuple, list)):
        if not value:
            return "none"
        return "x".join(format_value(item) for item in value) + ("x" if len(value) == 1 else "")
    return str(value)


def _format_float(value: float) -> str:
    if value.is_integer() and abs(value) < _LARGEST_WHOLE_FLOAT:
        return str(int(value))
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
