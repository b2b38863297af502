"""Checks of a trainer, and how one is run."""

from __future__ import annotations

import contextlib
import io
import os
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal
from unittest import SkipTest
from zlib import crc32

import numpy as np
import torch

import nnplug
from nnplug.composition.fields import CODE_FIELDS
from nnplug.composition.resolved import ResolvedConfig
from nnplug.config import TrainerConfig
from nnplug.testing.costs import Costs, StepTime
from nnplug.testing.exemptions import exemptions_of
from nnplug.testing.made_up_data import activated
from nnplug.testing.outcomes import CheckExempt, CheckFailed
from nnplug.testing.plan_cases import PlanCase
from nnplug.testing.selection import CHECK_NAMES, CheckFunction, Remark, applicable
from nnplug.testing.subject import Subject

Status = Literal["passed", "failed", "skipped", "exempt"]


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
        with activated(subject.results), _quiet(), _seeded(self.name):
            try:
                return self.function(subject)
            except SkipTest:
                raise
            except CheckFailed as failure:
                raise failure.with_traceback(None) from failure.__cause__
            except Exception as error:
                raise CheckFailed(self.expectation, _describe(error), _origin(error, subject)) from error

    @property
    def expectation(self) -> str:
        """What the check expects, in a sentence."""
        return " ".join((self.function.__doc__ or "").split())


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Attributes:
        check: which.
        status: ``skipped``: it can not be run, on this machine or after another check has failed; ``exempt``: its
            author says that it can not pass, and why.
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
    """Generate every check that applies to a trainer, as (name, callable).

    Args:
        trainer: text as after ``-tr``, the path of a recipe, or a config.
        quick: leave out the checks that take many seconds: torch.compile, two processes, a prediction by stock nnU-Net.
        trust_code: let a recipe name code anywhere.

    Returns:
        A generator of names such as ``gradients[2d]``, each with a callable that raises ``CheckFailed`` (an
        ``AssertionError``) where the trainer fails, and ``unittest.SkipTest`` where the check can not be run or the
        author is exempt from it.

    Raises:
        NnplugError: there is no such trainer.
    """
    resolved = nnplug.resolve(trainer, trust_code=trust_code)
    exemptions = exemptions_of(resolved, CHECK_NAMES)
    for one in applicable(resolved):
        if quick and one.is_slow:
            continue
        reason = exemptions.get(one.name, exemptions.get(one.name.partition("[")[0]))
        yield one.name, Check(resolved, one.name, one.function, one.case, one.is_slow, reason)


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
def _seeded(name: str) -> Iterator[None]:
    """Random numbers that are the same every time, other ones in every check; the caller's own go on undisturbed."""
    state, seed = np.random.get_state(), crc32(name.encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _origin(error: BaseException, subject: Subject) -> str | None:
    """The innermost line of the traceback in the trainer's own code, or where that is defined."""
    places = [place for place in map(subject.where, CODE_FIELDS) if place]
    folders = tuple({os.path.dirname(place) + os.sep for place in places})
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folders)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else next(iter(places), None)
