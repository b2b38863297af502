"""Which checks apply to a trainer: those of what it sets, on the plans that can make a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from nnplug.composition.resolved import ResolvedConfig
from nnplug.discovery.stock_names import fields_set_by
from nnplug.errors import NnplugError
from nnplug.loss_contract import LossContext, LossTraits
from nnplug.testing import costs, loss_checks, network_checks, process_checks, training_checks
from nnplug.testing.costs import Costs, StepTime
from nnplug.testing.outcomes import CheckExempt
from nnplug.testing.plan_cases import PLAIN, REFERENCE, PlanCase, variants
from nnplug.testing.subject import Subject
from nnplug.training import losses

Remark = str | Costs | StepTime | None
CheckFunction = Callable[[Subject], Remark]

CHECK_NAMES = (
    *network_checks.ON_EVERY_PLAN,
    *network_checks.ON_ONE_PLAN,
    *costs.ON_REFERENCE_PLANS,
    *loss_checks.ON_EVERY_PLAN,
    *loss_checks.WITH_IGNORE_LABEL,
    *loss_checks.WITH_TARGET_TRANSFORM,
    *loss_checks.ON_ONE_PLAN,
    *training_checks.OF_SCHEDULE,
    *training_checks.OF_SAMPLER,
    *training_checks.OF_SAMPLER_WITH_IGNORE_LABEL,
    *training_checks.ON_EVERY_PLAN,
    *process_checks.OF_NETWORK,
    *process_checks.OF_NETWORK_OR_LOSS,
    *process_checks.OF_PREDICTION,
)
_SAMPLING_FIELDS = ("sampler", "oversample_foreground_percent", "probabilistic_oversampling")
_PREDICTION_FIELDS = ("network_builder", "base_trainer", "plans", "mirror_axes", "patch_size")
_PLAN_DEPENDENT_FIELDS = ("loss_fn", "sampler", "training_transforms", "base_trainer")
#: The other plans differ in nothing that a sampler depends on.
_SAMPLING_PLANS = ("2d", "3d", "ignore_label")


class Applicable(NamedTuple):
    """A check that a trainer has to pass."""

    name: str
    function: CheckFunction
    case: PlanCase
    is_slow: bool


def applicable(resolved: ResolvedConfig) -> Iterator[Applicable]:
    """The checks in the order of plans: what a trainer needs on a plan is built once.

    Raises:
        NnplugError: the trainer works in no dimension.
    """
    plain = [case for case in PLAIN if case.dims in dimensions(resolved)]
    first_in = {case.dims: case for case in reversed(plain)}
    for case in PLAIN:
        if case not in plain:
            yield Applicable(f"plan[{case.name}]", _not_in_this_dimension, case, False)
    for case in (*plain, *_others(resolved, plain[0].dims)):
        for functions in _quick(resolved, case, is_first=case is plain[0], is_plain=case in plain):
            for name, function in functions.items():
                yield Applicable(f"{name}[{case.name}]", function, case, False)
        for functions in _slow(resolved, is_first=case is plain[0]) if case in first_in.values() else ():
            for name, function in functions.items():
                yield Applicable(f"{name}[{case.name}]", function, case, True)
    for case in REFERENCE:
        if has_network(resolved) and case.dims in dimensions(resolved):
            yield Applicable(f"costs[{case.name}]", costs.costs, case, False)
            yield Applicable(f"step_time[{case.name}]", costs.step_time, case, True)


def decides(resolved: ResolvedConfig, name: str) -> bool:
    """Whether a trainer sets a field, itself or through its base trainer's class."""
    if getattr(resolved.config, name) is not None:
        return True
    base = resolved.config.base_trainer
    return base is not None and name in fields_set_by(base.target)


def has_network(resolved: ResolvedConfig) -> bool:
    """Whether the network differs from the one in the plans."""
    return decides(resolved, "network_builder") or "architecture" in (resolved.config.plans or {})


def dimensions(resolved: ResolvedConfig) -> tuple[int, ...]:
    """The dimensions that a trainer works in."""
    config = resolved.config
    declared = config.spatial_dims or (2, 3)
    dims = tuple(d for d in declared if config.patch_size is None or d == len(config.patch_size))
    if not dims:
        raise NnplugError(f"'{resolved.name}' works in no dimension: spatial_dims and patch_size exclude each other.")
    return dims


def _quick(
    resolved: ResolvedConfig, case: PlanCase, *, is_first: bool, is_plain: bool
) -> Iterator[Mapping[str, CheckFunction]]:
    with_network = has_network(resolved)
    if with_network:
        yield network_checks.ON_EVERY_PLAN if is_plain else network_checks.ON_OTHER_DATA
    if with_network and is_first:
        yield network_checks.ON_ONE_PLAN
    if decides(resolved, "loss_fn") and case.num_channels == 1:
        yield loss_checks.ON_EVERY_PLAN
        if case.has_ignore_label:
            yield loss_checks.WITH_IGNORE_LABEL
        if _loss_traits(resolved).target_transform is not None:
            yield loss_checks.WITH_TARGET_TRANSFORM
        if is_first:
            yield loss_checks.ON_ONE_PLAN
    if is_first and decides(resolved, "lr_scheduler"):
        yield training_checks.OF_SCHEDULE
    if any(decides(resolved, name) for name in _SAMPLING_FIELDS) and case.name in _SAMPLING_PLANS:
        yield training_checks.OF_SAMPLER
        if case.has_ignore_label:
            yield training_checks.OF_SAMPLER_WITH_IGNORE_LABEL
    # in a large network a step takes seconds, and its parts have been checked on the plain plans
    is_plan_dependent = any(getattr(resolved.config, name) is not None for name in _PLAN_DEPENDENT_FIELDS)
    if is_first or (is_plan_dependent and not (with_network and is_plain)):
        yield training_checks.ON_EVERY_PLAN


def _slow(resolved: ResolvedConfig, *, is_first: bool) -> Iterator[Mapping[str, CheckFunction]]:
    """Checks on the first plan of a dimension; in the second dimension those of a network alone."""
    if not is_first:
        if not has_network(resolved):
            return
        yield network_checks.ON_ONE_PLAN
        yield training_checks.ON_EVERY_PLAN
    if has_network(resolved):
        yield process_checks.OF_NETWORK
    if has_network(resolved) or decides(resolved, "loss_fn"):
        yield process_checks.OF_NETWORK_OR_LOSS
    if any(getattr(resolved.config, name) is not None for name in _PREDICTION_FIELDS):
        yield process_checks.OF_PREDICTION


def _others(resolved: ResolvedConfig, dims: int) -> Iterator[PlanCase]:
    """Plans with regions, an ignore label, several channels, as far as the loss takes them."""
    traits = _loss_traits(resolved)
    for case in variants(dims):
        # to anything but a loss, regions with an ignore label are regions
        is_new = decides(resolved, "loss_fn") or not (case.has_regions and case.has_ignore_label)
        takes_regions = traits.supports_regions or not case.has_regions
        if is_new and takes_regions and (traits.supports_ignore_label or not case.has_ignore_label):
            yield case


def _loss_traits(resolved: ResolvedConfig) -> LossTraits:
    """What the loss can take; nnU-Net's own takes everything, what a class brings is not known."""
    loss_fn = resolved.config.loss_fn
    if loss_fn is None:
        is_stock = not decides(resolved, "loss_fn")
        return LossTraits(supports_ignore_label=is_stock, supports_regions=is_stock)
    try:
        return losses.make_loss(loss_fn, LossContext(num_classes=3, spatial_dims=max(dimensions(resolved))))[1]
    except Exception:  # the checks find it, and say what is wrong
        return LossTraits()


def _not_in_this_dimension(subject: Subject) -> str | None:
    """The trainer works in the dimensions that it declares."""
    field = "spatial_dims" if subject.resolved.config.spatial_dims is not None else "patch_size"
    raise CheckExempt(f"works in {' and '.join(f'{d}D' for d in dimensions(subject.resolved))} only ({field})")
