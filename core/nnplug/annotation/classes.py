"""The classes of an annotation: names and colours from a TOML, JSON or CSV file."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.errors import NnplugError
from nnplug.inventory.overview import COLOURS

_KEYS = ("name", "colour")
_MOST = 254  # an annotation is stored as bytes; 0 is what is not annotated, 255 may be it elsewhere


@dataclass(frozen=True)
class AnnotationClass:
    """A class; its number is its place in the file, from 1.

    Attributes:
        name: of the class.
        colour: ``#rrggbb``.
    """

    name: str
    colour: str


def read_classes(path: Path) -> tuple[AnnotationClass, ...]:
    """Read a TOML or JSON file with a list ``classes`` of name and colour, or a CSV file with these columns.

    A colour may be left out. Errors name the place, classes counted from 1.

    Raises:
        NnplugError: no such file or format, a name that is missing or there twice, a colour that is none.
    """
    entries = _read_entries(path)
    if not 2 <= len(entries) <= _MOST:
        raise NnplugError(f"{path}: classes: expected 2 to {_MOST} of them, got {len(entries)}.")
    classes: list[AnnotationClass] = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}: classes -> {number}"
        if not isinstance(entry, Mapping):
            raise NnplugError(f"{where}: expected a name and a colour, got {entry!r}.")
        unknown = sorted(set(entry) - set(_KEYS))
        if unknown:
            raise NnplugError(f"{where} -> {unknown[0]}: there is no such key; the keys are {', '.join(_KEYS)}.")
        name, default = entry.get("name"), "#" + COLOURS[(number - 1) % len(COLOURS)].tobytes().hex()
        if not isinstance(name, str) or not name.strip():
            raise NnplugError(f"{where} -> name: expected a text, got {name!r}.")
        if name in [one.name for one in classes]:
            raise NnplugError(f"{where} -> name: '{name}' is there twice.")
        colour = entry.get("colour") or default
        if not isinstance(colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise NnplugError(f"{where} -> colour: expected one as #ff8800, got {colour!r}.")
        classes.append(AnnotationClass(name, colour.lower()))
    return tuple(classes)


def _read_entries(path: Path) -> Sequence[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise NnplugError(f"{path} can not be read: {reason}.") from None
    if path.suffix == ".csv":
        return _read_csv(path, text)
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise NnplugError(f"{path}: classes are read from .toml, .json or .csv.")
    try:
        content = readers[path.suffix](text)
    except ValueError as error:
        raise NnplugError(f"{path} is no valid {path.suffix[1:].upper()} ({error}).") from None
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise NnplugError(f"{path}: classes: expected a list of name and colour, got {entries!r}.")
    return entries


def _read_csv(path: Path, text: str) -> list[dict[str, str]]:
    table = csv.DictReader(text.splitlines(), restkey="more", skipinitialspace=True)
    if "name" not in (table.fieldnames or ()):
        raise NnplugError(f"{path}: expected the columns name and colour in the first line.")
    return [{key: value for key, value in row.items() if value is not None} for row in table]
