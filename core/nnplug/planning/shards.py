"""A part of the cases, so that the jobs of an array share them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from nnplug.errors import NnplugError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``number``, counted from 1."""

    index: int = 1
    number: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``. Raises NnplugError where that is no shard."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise NnplugError(f"--shard {text}: expected I/N with I from 1 to N, for example 1/4, 2/4, 3/4, 4/4.")
        return cls(int(match[1]), int(match[2]))

    def of(self, cases: Mapping[str, T]) -> dict[str, T]:
        """Every ``number``-th case."""
        return dict(list(cases.items())[self.index - 1 :: self.number])

    def __str__(self) -> str:
        return f"{self.index}/{self.number}"


WHOLE = Shard()
