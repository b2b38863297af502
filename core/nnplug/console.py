"""Tables on a terminal, and wider ones where the output is piped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 200


def table_console(**settings: Any) -> Console:
    """rich's console on standard output, ``settings`` its own; without a terminal no name is cut at 80 columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False, **settings)
