"""What a network, loss or sampler is not held to, said by its author beside its code. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nnplug.composition.checks import did_you_mean
from nnplug.composition.component import Component
from nnplug.composition.fields import CODE_FIELDS
from nnplug.composition.references import describe, load
from nnplug.composition.resolved import ResolvedConfig
from nnplug.errors import NnplugError
from nnplug.testing.plan_cases import PLAN_NAMES

T = TypeVar("T")
_ATTRIBUTE = "nnplug_exemptions"


def exempt(check: str, *, reason: str) -> Callable[[T], T]:
    """Decorate a builder, loss or sampler with a check that it can not pass.

    The check is not run for any trainer that uses the code; the reason is shown in its place.

    Args:
        check: its name, with a plan in brackets to exempt from that plan alone.
        reason: why, for those who use the trainer.

    Raises:
        NnplugError: there is no reason.

    Example:
        >>> @exempt("torch_compile", reason="complex numbers, which inductor does not compile")
        ... def build_fourier_net(input_channels, num_classes, deep_supervision): ...
    """
    if not reason.strip():
        raise NnplugError(f"exempt('{check}'): say why. The reason is shown to those who use the trainer.")

    def mark(code: T) -> T:
        setattr(code, _ATTRIBUTE, {**getattr(code, _ATTRIBUTE, {}), check: reason})
        return code

    return mark


def exemptions_of(resolved: ResolvedConfig, known: tuple[str, ...]) -> dict[str, str]:
    """Reason by name of check, of every code field of a trainer.

    Raises:
        NnplugError: an exemption from a check, or on a plan, that does not exist.
    """
    found: dict[str, str] = {}
    for field in CODE_FIELDS:
        value = getattr(resolved.config, field)
        if value is None:
            continue
        code = loaded(value)
        for check, reason in getattr(code, _ATTRIBUTE, {}).items():
            name, has_plan, plan = check.partition("[")
            if has_plan and plan.removesuffix("]") not in PLAN_NAMES:
                raise NnplugError(
                    f"{field} {describe(code)} is exempt from '{check}', which names no plan of the checks. "
                    f"The plans: {', '.join(PLAN_NAMES)}."
                )
            if name not in known:
                raise NnplugError(
                    f"{field} {describe(code)} is exempt from '{check}', which is no check"
                    f"{did_you_mean(check, known)}. The checks: {', '.join(known)}."
                )
            found[check] = f"{reason} ({field} {describe(code)})"
    return found


def loaded(value: Any) -> Any:
    """The code that a field holds; None where it can not be imported, which the checks find by themselves."""
    target = value.target if isinstance(value, Component) else value
    try:
        return load(target, trusted=True)
    except Exception:
        return None
