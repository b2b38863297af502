"""How a check ends. Torch-free."""

from __future__ import annotations

from unittest import SkipTest


class CheckFailed(AssertionError):
    """The trainer does not do what it must.

    Args:
        expected: what every trainer does.
        found: what this one does.
        where: file and line, or the name of the part, to look at.
    """

    def __init__(self, expected: str, found: str, where: str | None = None) -> None:
        super().__init__(expected, found, where)
        self.expected, self.found, self.where = expected, found, where

    def __str__(self) -> str:
        text = f"expected: {self.expected}\nfound:    {self.found}"
        return f"{text}\nlook at:  {self.where}" if self.where else text


class CheckSkipped(SkipTest):
    """The check can not be run: not on this machine, or not after another has failed. pytest reports the reason."""


class CheckExempt(CheckSkipped):
    """The author has declared that the trainer does not do this, with a reason."""
