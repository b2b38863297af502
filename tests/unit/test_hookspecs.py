"""Lifecycle hooks: a logger that fails is reported once and never ends a training."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import pytest
from nnplug import EpochMetrics, NnplugError, TrainingRun, hookspecs
from nnplug.discovery.plugin_loading import HOOKS
from nnplug.hookspecs import LIFECYCLE_HOOKS
from nnplug.training.lifecycle import call_lifecycle
from support.plugin_packages import PluginSite

LOGGER = """
import os
CALLS = []

@nnplug.hookimpl
def train_start(run):
    CALLS.append(("train_start", run.trainer))

@nnplug.hookimpl
def epoch_end(metrics, run):
    CALLS.append(("epoch_end", metrics.epoch))
"""
FAILING = """
@nnplug.hookimpl
def train_start(run):
    raise ConnectionError("no server")

@nnplug.hookimpl
def epoch_end(metrics):
    raise AssertionError("is not called again")
"""


def a_run() -> TrainingRun:
    return TrainingRun(
        trainer="unet+num_epochs=5",
        dataset="Dataset004_Hippocampus",
        configuration="3d_fullres",
        plans="nnUNetPlans",
        fold="0",
        output_folder=Path("results"),
        num_epochs=5,
        device="cpu",
        is_resumed=False,
        config={"name": "unet+num_epochs=5", "num_epochs": 5},
    )


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        learning_rate=0.01,
        train_loss=0.5,
        val_loss=0.4,
        mean_dice=0.8,
        ema_dice=0.7,
        dice_per_class=(0.7, 0.9),
        epoch_seconds=10.0,
        data_seconds=1.0,
    )


def test_every_plugin_is_called(installed: PluginSite) -> None:
    installed.add("one", code=LOGGER)
    installed.add("two", code=LOGGER)
    call_lifecycle("train_start", run=a_run())
    call_lifecycle("epoch_end", run=a_run(), metrics=metrics(0))
    call_lifecycle("train_end", run=a_run(), result={})
    import one  # type: ignore[import-not-found]
    import two  # type: ignore[import-not-found]

    assert one.CALLS == two.CALLS == [("train_start", "unet+num_epochs=5"), ("epoch_end", 0)]


def test_a_plugin_that_fails_is_reported_once(installed: PluginSite, caplog: pytest.LogCaptureFixture) -> None:
    installed.add("failing", "0.2", code=FAILING)
    installed.add("good", code=LOGGER)
    call_lifecycle("train_start", run=a_run())
    call_lifecycle("epoch_end", run=a_run(), metrics=metrics(0))
    call_lifecycle("epoch_end", run=a_run(), metrics=metrics(1))
    assert [record.getMessage() for record in caplog.records] == [
        "Plugin failing 0.2 failed in train_start (ConnectionError: no server). Training goes on without its hooks."
    ]
    assert caplog.records[0].levelno == logging.WARNING
    import good  # type: ignore[import-not-found]

    assert good.CALLS == [("train_start", "unet+num_epochs=5"), ("epoch_end", 0), ("epoch_end", 1)]


def test_only_the_start_can_be_refused(installed: PluginSite, caplog: pytest.LogCaptureFixture) -> None:
    refuse = "@nnplug.hookimpl\ndef {}(run):\n    raise nnplug.NnplugError('not so')\n"
    installed.add("early", code=refuse.format("train_start"))
    installed.add("late", code=refuse.format("epoch_end"))
    with pytest.raises(NnplugError, match="not so"):
        call_lifecycle("train_start", run=a_run())
    call_lifecycle("epoch_end", run=a_run(), metrics=metrics(0))
    assert "Plugin late 1.0 failed in epoch_end (NnplugError: not so)." in caplog.text


def test_broken_plugins_are_left_out(installed: PluginSite) -> None:
    installed.add("broken", code="raise OSError\n")
    installed.add("good", code=LOGGER)
    call_lifecycle("train_start", run=a_run())
    import good  # type: ignore[import-not-found]

    assert good.CALLS == [("train_start", "unet+num_epochs=5")]


def test_only_lifecycle_hooks_are_called() -> None:
    with pytest.raises(AssertionError):
        call_lifecycle("register_trainers", register=None)


def test_every_hook_is_documented_and_typed() -> None:
    assert set(LIFECYCLE_HOOKS) < set(HOOKS)
    assert len(HOOKS) == 8
    for name in HOOKS:
        hook = getattr(hookspecs, name)
        assert hook.__doc__
        assert all(
            parameter.annotation != inspect.Parameter.empty for parameter in inspect.signature(hook).parameters.values()
        )


@pytest.mark.parametrize("kind", [TrainingRun, EpochMetrics])
def test_every_attribute_is_documented(kind: type) -> None:
    for name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
        assert f"\n        {name}: " in (kind.__doc__ or "")
