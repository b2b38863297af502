"""The conformance suite: what every trainer must do, as checks for pytest and for ``nnplug check``.

In an author's test:

    from nnplug.testing import parametrize_with_checks

    @parametrize_with_checks("my_trainer")
    def test_trainer(check):
        check()

Importing this module imports neither torch nor pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nnplug.testing.exemptions import exempt
from nnplug.testing.outcomes import CheckExempt, CheckFailed, CheckSkipped
from nnplug.testing.plan_cases import CASES

if TYPE_CHECKING:
    from nnplug.testing.conformance import Check, Outcome, check_trainer, run_checks

__all__ = [
    "CASES",
    "Check",
    "CheckExempt",
    "CheckFailed",
    "CheckSkipped",
    "Outcome",
    "check_trainer",
    "exempt",
    "parametrize_with_checks",
    "run_checks",
]

_LAZY = ("Check", "Outcome", "check_trainer", "run_checks")


def parametrize_with_checks(*trainers: Any, quick: bool = False, trust_code: bool = False) -> Callable[..., Any]:
    """A pytest decorator that runs a test with the argument ``check`` once for every check of the trainers.

    Slow checks have the mark ``nnplug_slow``: ``pytest -m "not nnplug_slow"`` leaves them out.

    Args:
        trainers: each as for `check_trainer`.
        quick: leave out the slow checks.
        trust_code: let recipes name code anywhere.
    """
    import pytest

    from nnplug.testing.conformance import check_trainer

    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id=f"{check.resolved.name}-{name}",
                marks=[pytest.mark.nnplug_slow] if check.is_slow else [],
            )
            for trainer in trainers
            for name, check in check_trainer(trainer, quick=quick, trust_code=trust_code)
        ],
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("nnplug.testing.conformance"), name)
    raise AttributeError(f"module 'nnplug.testing' has no attribute '{name}'")
