"""Which checks a trainer has to pass, and how one is run."""

from __future__ import annotations

import contextlib
import io
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal
from unittest import SkipTest

import numpy as np
import torch

from nnplug import losses
from nnplug.config import TrainerConfig
from nnplug.loss_contract import LossContext, LossTraits
from nnplug.registry import get_registry
from nnplug.resolved import ResolvedConfig
from nnplug.stock_names import fields_set_by
from nnplug.testing import loss_checks, network_checks, process_checks, training_checks
from nnplug.testing.costs import Costs, StepTime
from nnplug.testing.exemptions import exemptions_of
from nnplug.testing.made_up_data import activated
from nnplug.testing.outcomes import CheckExempt, CheckFailed
from nnplug.testing.plan_cases import PLAIN, REFERENCE, PlanCase, variants
from nnplug.testing.subject import Subject

Remark = str | Costs | StepTime | None
CheckFunction = Callable[[Subject], Remark]
Applicable = tuple[str, CheckFunction, PlanCase, bool]
Status = Literal["passed", "failed", "skipped", "exempt"]

CHECK_NAMES = (
    *network_checks.ON_EVERY_PLAN,
    *network_checks.ON_ONE_PLAN,
    *network_checks.ON_REFERENCE_PLANS,
    *loss_checks.ON_EVERY_PLAN,
    *loss_checks.WITH_IGNORE_LABEL,
    *loss_checks.ON_ONE_PLAN,
    *training_checks.OF_SCHEDULE,
    *training_checks.OF_SAMPLER,
    *training_checks.OF_SAMPLER_WITH_IGNORE_LABEL,
    *training_checks.ON_EVERY_PLAN,
    *process_checks.OF_NETWORK,
    *process_checks.OF_NETWORK_OR_LOSS,
    *process_checks.OF_PREDICTION,
)


@dataclass(frozen=True)
class Check:
    """One check of one trainer on one plan. Called, it raises ``CheckFailed`` or returns a remark or a measurement.

    Attributes:
        resolved: the trainer.
        name: for example ``gradients[2d]``.
        is_slow: takes many seconds.
        exemption: reason why it is not run, None where it is.
    """

    resolved: ResolvedConfig
    name: str
    function: CheckFunction = field(repr=False)
    case: PlanCase = field(repr=False)
    is_slow: bool = False
    exemption: str | None = None

    def __call__(self) -> Remark:
        __tracebackhide__ = True
        if self.exemption is not None:
            raise CheckExempt(self.exemption)
        subject = _subjects.get(self.resolved, self.case)
        with activated(subject.results), _quiet(), _seeded():
            try:
                return self.function(subject)
            except (CheckFailed, SkipTest):
                raise
            except Exception as error:
                raise CheckFailed(self.expectation, _describe(error), _origin(error)) from error

    @property
    def expectation(self) -> str:
        """What the check expects, in a sentence."""
        return " ".join((self.function.__doc__ or "").split())


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Attributes:
        check: which.
        status: ``skipped``: this machine can not run it; ``exempt``: its author says that it can not pass, and why.
        message: the failure, the reason, or a remark on a check that passed.
        seconds: it took.
        measured: what the check measured, where it did.
    """

    check: Check
    status: Status
    message: str
    seconds: float
    measured: Costs | StepTime | None = None


def check_trainer(
    trainer: str | os.PathLike[str] | TrainerConfig | ResolvedConfig, *, quick: bool = False, trust_code: bool = False
) -> Iterator[tuple[str, Check]]:
    """Every check that applies to a trainer, as (name, callable).

    Args:
        trainer: text as after ``-tr``, the path of a recipe, or a config.
        quick: leave out the checks that take many seconds: torch.compile, two processes, a prediction by stock nnU-Net.
        trust_code: let a recipe name code anywhere.

    Yields:
        Names such as ``gradients[2d]``, each with a callable that raises ``CheckFailed`` (an ``AssertionError``) where
        the trainer fails, and ``unittest.SkipTest`` where the check can not be run or the author is exempt from it.

    Raises:
        NnplugError: there is no such trainer.
    """
    resolved = get_registry().resolve(trainer, trust_code=trust_code)
    exemptions = exemptions_of(resolved, CHECK_NAMES)
    for name, function, case, is_slow in _applicable(resolved):
        if quick and is_slow:
            continue
        reason = exemptions.get(name, exemptions.get(name.partition("[")[0]))
        yield name, Check(resolved, name, function, case, is_slow, reason)


def run_checks(checks: Iterable[Check]) -> Iterator[Outcome]:
    """Run checks one after the other and tell how each ended."""
    for check in checks:
        started = perf_counter()
        status: Status = "passed"
        remark: Remark = None
        try:
            remark = check()
            message = "" if remark is None else str(remark)
        except CheckFailed as failure:
            status, message = "failed", str(failure)
        except CheckExempt as reason:
            status, message = "exempt", str(reason)
        except SkipTest as reason:
            status, message = "skipped", str(reason)
        measured = remark if isinstance(remark, Costs | StepTime) else None
        yield Outcome(check, status, message, perf_counter() - started, measured)


# --- which checks apply ----------------------------------------------------------------------------------------------


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
    dims = config.spatial_dims or (2, 3)
    return dims if config.patch_size is None else tuple(d for d in dims if d == len(config.patch_size))


def _applicable(resolved: ResolvedConfig) -> Iterator[Applicable]:
    """Checks in the order of plans: what a trainer needs on a plan is built once."""
    dims = dimensions(resolved)
    plain = [case for case in PLAIN if case.dims in dims]
    for case in PLAIN:
        if case not in plain:
            yield f"plan[{case.name}]", _not_in_this_dimension, case, False
    if not plain:
        return
    traits = _loss_traits(resolved)
    others = [case for case in variants(plain[0].dims) if _is_supported(case, traits)]
    for case in (*plain, *others):
        for functions in _functions(resolved, case, is_first=case is plain[0], is_plain=case in plain):
            for name, function in functions.items():
                yield f"{name}[{case.name}]", function, case, False
        for name, function in _slow_functions(resolved).items() if case is plain[0] else ():
            yield f"{name}[{case.name}]", function, case, True
    for case in REFERENCE if has_network(resolved) else ():
        if case.dims in dims:
            yield f"costs[{case.name}]", network_checks.costs, case, False
            yield f"step_time[{case.name}]", network_checks.step_time, case, True


def _functions(
    resolved: ResolvedConfig, case: PlanCase, *, is_first: bool, is_plain: bool
) -> Iterator[Mapping[str, CheckFunction]]:
    with_network = has_network(resolved)
    if with_network and is_plain:
        yield network_checks.ON_EVERY_PLAN
        if is_first:
            yield network_checks.ON_ONE_PLAN
    elif with_network:
        yield {"builds": network_checks.builds}
    if decides(resolved, "loss_fn") and case.num_channels == 1:
        yield loss_checks.ON_EVERY_PLAN
        if case.has_ignore_label:
            yield loss_checks.WITH_IGNORE_LABEL
        if is_first:
            yield loss_checks.ON_ONE_PLAN
    if is_first and decides(resolved, "lr_scheduler"):
        yield training_checks.OF_SCHEDULE
    if any(decides(resolved, name) for name in _SAMPLING_FIELDS) and not case.has_regions and case.num_channels == 1:
        yield training_checks.OF_SAMPLER
        if case.has_ignore_label:
            yield training_checks.OF_SAMPLER_WITH_IGNORE_LABEL
    # a step in 3D takes seconds with a large network, and its parts have been checked there
    if is_first or (not is_plain and _depends_on_labels(resolved)) or (is_plain and not with_network):
        yield training_checks.ON_EVERY_PLAN


def _slow_functions(resolved: ResolvedConfig) -> Mapping[str, CheckFunction]:
    functions: dict[str, CheckFunction] = {}
    if has_network(resolved):
        functions |= process_checks.OF_NETWORK
    if has_network(resolved) or decides(resolved, "loss_fn"):
        functions |= process_checks.OF_NETWORK_OR_LOSS
    if any(getattr(resolved.config, name) is not None for name in _PREDICTION_FIELDS):
        functions |= process_checks.OF_PREDICTION
    return functions


_PREDICTION_FIELDS = ("network_builder", "base_trainer", "plans", "mirror_axes", "patch_size")
_SAMPLING_FIELDS = ("sampler", "oversample_foreground_percent", "probabilistic_oversampling")


def _depends_on_labels(resolved: ResolvedConfig) -> bool:
    """Whether what a trainer changes could depend on regions, the ignore label or channels."""
    fields = ("network_builder", "loss_fn", "sampler", "training_transforms", "base_trainer", "plans")
    return any(getattr(resolved.config, name) is not None for name in fields)


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


def _is_supported(case: PlanCase, traits: LossTraits) -> bool:
    if case.has_regions and not traits.supports_regions:
        return False
    return traits.supports_ignore_label or not case.has_ignore_label


def _not_in_this_dimension(subject: Subject) -> str | None:
    """The trainer works in the dimensions that it declares."""
    config = subject.resolved.config
    field = "spatial_dims" if config.spatial_dims is not None else "patch_size"
    raise CheckExempt(f"works in {' and '.join(f'{d}D' for d in dimensions(subject.resolved))} only ({field})")


# --- running ---------------------------------------------------------------------------------------------------------


class _Subjects:
    """Keeps the subject that was asked for last: a trainer's checks come plan by plan, and networks are large."""

    def __init__(self) -> None:
        self.current: Subject | None = None

    def get(self, resolved: ResolvedConfig, case: PlanCase) -> Subject:
        current = self.current
        if current is None or current.resolved is not resolved or current.case != case:
            self.current = None
            self.current = Subject(resolved, case)
        assert self.current is not None
        return self.current


_subjects = _Subjects()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers every time, and the caller's own go on as if nothing had happened."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(state)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _origin(error: BaseException) -> str | None:
    """The innermost line of the traceback that is neither torch's nor nnplug's: the author's own, or a library's."""
    own = (os.path.dirname(torch.__file__), os.path.dirname(losses.__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
