"""What pytest has to know of the checks; loaded in every pytest run, so without torch and nnU-Net."""

from __future__ import annotations

from typing import Any


def pytest_configure(config: Any) -> None:
    """Declare the mark of slow checks, which ``--strict-markers`` would refuse otherwise."""
    config.addinivalue_line("markers", "nnplug_slow: a check of a trainer that takes many seconds")
