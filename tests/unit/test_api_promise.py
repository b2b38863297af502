"""What plugins of API 1 may rely on is still there. To take something away, raise ``nnplug.API_VERSION``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import nnplug
import nnplug.testing
import pytest
from nnplug import hookspecs
from nnplug.composition.fields import FIELDS

# function or class: arguments that it takes by name
CALLABLES = {
    "Component": "",
    "LossContext": "num_classes spatial_dims ignore_label has_regions batch_dice is_ddp num_deep_supervision_outputs",
    "evaluate": "truth predictions dataset_json plans output csv tolerance_mm surfaces instances allow_missing "
    "num_processes progress_bar",
    "list_trainers": "pattern",
    "loss_traits": "target_format handles_deep_supervision supports_ignore_label supports_regions",
    "nnunet_training": "dataset_id configuration fold trainer plans_identifier num_gpus device pretrained_weights "
    "continue_training validation_only val_best disable_checkpointing npz use_compressed verify_dataset_integrity "
    "no_preprocessing inventory dataset_name cache_dir results_dir restart clean prev_stage_trainer num_processes "
    "trust_code trust_checkpoint progress raise_errors",
    "predict": "model_folder inputs output folds checkpoint_name device mirror step_size save_probabilities "
    "num_processes_preprocessing num_processes_export num_parts part_id continue_prediction "
    "perform_everything_on_device prev_stage_predictions trust_checkpoint trust_code verbose progress_bar",
    "resolve": "trainer trust_code",
    "train": "dataset configuration folds trainer plans device num_gpus all_data continue_training restart "
    "validation_only val_best npz disable_checkpointing pretrained_weights prev_stage_trainer prev_stage_predictions "
    "trust_code trust_checkpoint on_message keep_finished",
}
HOOKS = {
    "register_trainers": "register",
    "register_recipes": "",
    "register_planners": "register",
    "register_preprocessors": "register",
    "train_start": "run",
    "epoch_end": "run metrics",
    "checkpoint_saved": "run path",
    "train_end": "run result",
}
RECORDS = {
    "TrainingRun": "trainer dataset configuration plans fold output_folder num_epochs device is_resumed config labels",
    "EpochMetrics": "epoch learning_rate train_loss val_loss mean_dice ema_dice dice_per_class epoch_seconds "
    "data_seconds",
    "TrainingEvent": "stage message dataset configuration fold epoch num_epochs metrics",
    "TrainerConfig": "name description source extends unset base_trainer network_builder enable_deep_supervision "
    "spatial_dims loss_fn sampler training_transforms mirror_axes optimizer lr_scheduler initial_lr weight_decay "
    "num_epochs num_iterations_per_epoch num_val_iterations_per_epoch batch_size patch_size "
    "oversample_foreground_percent probabilistic_oversampling save_every compile amp seed plans",
}
TESTING = {"check_trainer": "trainer", "parametrize_with_checks": "trainers quick", "exempt": "check reason"}


def arguments(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_this_is_api_1() -> None:
    assert nnplug.API_VERSION == 1
    assert {*CALLABLES, *RECORDS, "API_VERSION", "NnplugError", "ResolvedConfig", "__version__", "hookimpl"} <= set(
        nnplug.__all__
    )


@pytest.mark.parametrize(("name", "promised"), CALLABLES.items())
def test_public_callables_take_what_they_took(name: str, promised: str) -> None:
    assert set(promised.split()) <= arguments(getattr(nnplug, name))


@pytest.mark.parametrize(("name", "promised"), HOOKS.items())
def test_hooks_are_given_what_they_were_given(name: str, promised: str) -> None:
    assert set(promised.split()) <= arguments(getattr(hookspecs, name))


@pytest.mark.parametrize(("name", "promised"), RECORDS.items())
def test_records_have_the_attributes_that_they_had(name: str, promised: str) -> None:
    assert set(promised.split()) <= set(getattr(nnplug, name).__dataclass_fields__)


def test_fields_are_still_fields() -> None:
    assert set(RECORDS["TrainerConfig"].split()) <= set(FIELDS)


@pytest.mark.parametrize(("name", "promised"), TESTING.items())
def test_the_kit_for_tests_takes_what_it_took(name: str, promised: str) -> None:
    assert name in nnplug.testing.__all__
    assert set(promised.split()) <= arguments(getattr(nnplug.testing, name))
