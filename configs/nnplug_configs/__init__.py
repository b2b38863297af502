"""The recipes that come with nnplug, as a plugin like any other: it hands over the folder."""

from __future__ import annotations

from pathlib import Path

import nnplug

NNPLUG_API = 1


@nnplug.hookimpl
def register_recipes() -> Path:
    """The folder of the trainer recipes."""
    return Path(__file__).parent / "trainers"
