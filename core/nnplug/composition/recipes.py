"""Recipes: trainer configs as TOML files, one trainer a file."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from nnplug.composition.fields import check_fields
from nnplug.config import TrainerConfig
from nnplug.errors import NnplugError


def read_recipe(path: str | Path, shown: str | None = None) -> TrainerConfig:
    """Read one recipe.

    Args:
        path: the file. Its fields are those of `TrainerConfig`, the name is that of the file if none is given. A code
            field is ``"package.module:attribute"`` or a table with the key ``use`` and the keyword arguments beside it.
        shown: how messages name the file.

    Raises:
        NnplugError: unreadable file, malformed TOML, or the path to a value that is wrong.
    """
    shown = shown or str(path)
    return parse_recipe(_read_bytes(path, shown), shown, Path(path).stem)


def read_file_recipe(path: str | Path) -> TrainerConfig:
    """Read a recipe that the user named by its path; its content is part of its name: ``<name>-<8 hex digits>``."""
    content = _read_bytes(path, str(path))
    config = parse_recipe(content, str(path), Path(path).stem)
    return config.copy(name=f"{config.name}-{hashlib.sha256(content).hexdigest()[:8]}")


def parse_recipe(content: bytes, shown: str, name: str) -> TrainerConfig:
    """Read a recipe from the bytes of its file; `name` is taken where the recipe has none."""
    try:
        table: dict[str, Any] = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise NnplugError(f"{shown}: not a text file in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise NnplugError(f"{shown}: not valid TOML: {error}.") from None
    return TrainerConfig(**check_fields({"name": name, **table}, shown))


def _read_bytes(path: str | Path, shown: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise NnplugError(f"{shown}: there is no such recipe file.") from None
    except OSError as error:
        raise NnplugError(f"{shown}: can not be read: {error.strerror}.") from None
