"""What is wrong with data: each problem says where it is, what was found and what to do; all are told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnplug.errors import NnplugError

_MOST_NAMES = 5


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        found: what was found.
        advice: what to do about it.
        case, file: where, as far as it is in one place.
    """

    found: str
    advice: str
    case: str | None = None
    file: Path | None = None

    def __str__(self) -> str:
        where = [f"case {self.case}"] if self.case is not None else []
        where += [str(self.file)] if self.file is not None else []
        return f"{', '.join(where)}{': ' if where else ''}{self.found}. {self.advice}"


def raise_problems(subject: object, problems: Sequence[Problem]) -> None:
    """Raise a NnplugError with every problem; nothing where there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise NnplugError(f"{subject}: {problems[0]}")
    lines = "\n  ".join(map(str, problems))
    raise NnplugError(f"{subject}: {len(problems)} problems:\n  {lines}")


def count(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
