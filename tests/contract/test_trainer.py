"""A config on a real trainer: networks, losses, mirroring, seeds, and the mistakes that are found before training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import nnplug
import numpy as np
import pytest
import sample_networks as samples
import torch
from nnplug import NnplugError, TrainerConfig
from nnplug.training.trainer import build_trainer_class
from support.datasets import DatasetForTests
from support.stock_launcher import declare_missing_operators

MakeTrainer = Callable[..., Any]


@pytest.fixture
def make_trainer(tiny_dataset: DatasetForTests) -> Iterator[MakeTrainer]:
    def make(trainer: Any, configuration: str = "3d_fullres", **labels: Any) -> Any:
        folder = tiny_dataset.preprocessed_folder
        plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
        dataset_json = {**json.loads((folder / "dataset.json").read_text()), **labels}
        resolved = nnplug.resolve(trainer)
        return build_trainer_class(resolved)(plans, configuration, 0, dataset_json, torch.device("cpu"))

    with tiny_dataset.activated():
        yield make


def started(trainer: Any) -> Any:
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def one_step(trainer: Any) -> float:
    return float(started(trainer).train_step(next(trainer.dataloader_train))["loss"])


def test_the_example_of_the_documents(make_trainer: MakeTrainer) -> None:
    config = TrainerConfig(
        name="my_trainer",
        description="mine",
        network_builder=samples.build_my_custom_network,
        loss_fn=samples.MyLoss(),
        num_epochs=500,
    )
    trainer = make_trainer(config)

    assert np.isfinite(one_step(trainer))
    assert type(trainer).__name__ == "my_trainer"
    assert trainer.num_epochs == 500
    assert isinstance(trainer.network, samples.TwoConvolutions)
    # the network has no decoder and one output: no deep supervision, though nothing said so
    assert trainer.enable_deep_supervision is False
    assert config.loss_fn.target_shape == (2, 1, 24, 28, 24)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_builder_is_found_again_by_stock_nnunet(make_trainer: MakeTrainer, configuration: str) -> None:
    trainer = make_trainer(TrainerConfig(name="t", network_builder=samples.build_my_custom_network), configuration)

    architecture = trainer.configuration_manager.configuration["architecture"]
    assert architecture["network_class_name"] == "sample_networks.build_my_custom_network"
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    assert isinstance(stock, samples.TwoConvolutions)


def test_settings_of_the_builder_travel_in_the_plans(make_trainer: MakeTrainer) -> None:
    config = TrainerConfig(name="t", network_builder=nnplug.Component(samples.build_with_width, width=7))
    architecture = make_trainer(config).configuration_manager.configuration["architecture"]

    assert architecture["arch_kwargs"] == {"width": 7}
    assert architecture["_kw_requires_import"] == []


@pytest.mark.parametrize(
    ("loss_fn", "target_shape"),
    [
        (samples.MyLoss(), (2, 1, 24, 28, 24)),
        (samples.MyLoss, (2, 1, 24, 28, 24)),
        (samples.make_my_loss, (2, 1, 24, 28, 24)),
        ("sample_networks:MyLoss", (2, 1, 24, 28, 24)),
        (nnplug.Component("sample_networks:make_my_loss", weight=2.0), (2, 1, 24, 28, 24)),
        (samples.OneHotLoss(), (2, 3, 24, 28, 24)),
        (samples.OneHotLoss, (2, 3, 24, 28, 24)),
    ],
    ids=["instance", "class", "factory", "import string", "with arguments", "one-hot instance", "one-hot class"],
)
def test_a_loss_gets_the_target_it_declares(make_trainer: MakeTrainer, loss_fn: Any, target_shape: Any) -> None:
    config = TrainerConfig(name="t", network_builder=samples.build_my_custom_network, loss_fn=loss_fn)
    trainer = make_trainer(config)
    one_step(trainer)

    assert trainer.loss.loss.target_shape == target_shape


def test_a_plain_function_is_a_loss(make_trainer: MakeTrainer) -> None:
    config = TrainerConfig(name="t", network_builder=samples.build_my_custom_network, loss_fn=samples.plain_function)
    assert np.isfinite(one_step(make_trainer(config)))


def test_deep_supervision_is_weighted_as_by_nnunet(make_trainer: MakeTrainer) -> None:
    ours = make_trainer(TrainerConfig(name="t", loss_fn=samples.MyLoss()))
    stock = make_trainer("nnUNetTrainer")
    for trainer in (ours, stock):
        trainer.initialize()

    assert ours.loss.weight_factors == pytest.approx(stock.loss.weight_factors)
    assert ours._get_deep_supervision_scales() == stock._get_deep_supervision_scales()


def test_targets_follow_the_sizes_that_a_network_returns(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(TrainerConfig(name="t", network_builder=samples.build_pyramid))
    started(trainer)
    batch = next(trainer.dataloader_train)

    assert [tuple(t.shape[2:]) for t in batch["target"]] == [(24, 28, 24), (24, 14, 12)]
    assert np.isfinite(float(trainer.train_step(batch)["loss"]))
    trainer.set_deep_supervision_enabled(False)
    assert isinstance(trainer.network(batch["data"]), torch.Tensor)


def test_a_network_that_looks_at_values_is_tried_on_the_cpu(make_trainer: MakeTrainer) -> None:
    assert np.isfinite(one_step(make_trainer(TrainerConfig(name="t", network_builder=samples.build_looks_at_values))))


def test_no_mirroring_reaches_training_and_prediction(make_trainer: MakeTrainer) -> None:
    trainer = started(make_trainer("mirror_axes=none"))

    assert trainer.inference_allowed_mirroring_axes is None
    assert "Mirror" not in str(trainer.dataloader_train.data_loader.transforms.transforms)
    mirrored = started(make_trainer("nnUNetTrainer"))
    assert mirrored.inference_allowed_mirroring_axes == (0, 1, 2)
    assert "Mirror" in str(mirrored.dataloader_train.data_loader.transforms.transforms)


def test_a_seed_gives_the_same_initial_weights(make_trainer: MakeTrainer) -> None:
    def weights(trainer: str) -> torch.Tensor:
        made = make_trainer(trainer)
        made.initialize()
        return next(made.network.parameters()).detach().clone()

    assert torch.equal(weights("seed=1"), weights("seed=1"))
    assert not torch.equal(weights("seed=1"), weights("seed=2"))


def test_batch_size_wins_over_a_class_that_overwrites_the_plan(make_trainer: MakeTrainer) -> None:
    declare_missing_operators()
    trainer = make_trainer("nnUNet_Trainer_BS8+batch_size=4")
    trainer._set_batch_size_and_oversample()
    assert trainer.batch_size == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"network_builder": samples.build_too_few_classes},
            r"returns shape \(2, 2, 24, 28, 24\) as output 0;",
        ),
        ({"network_builder": samples.build_empty}, r"returns an empty list; expected a tensor"),
        (
            {"network_builder": samples.build_a_number},
            r"The network of '.+' is no network but int: its builder must return a torch\.nn\.Module\.",
        ),
        (
            {"network_builder": samples.build_raises},
            r"fails on a patch of 24x28x24: width must be even \(/.*\.py:[0-9]+\)",
        ),
        ({"network_builder": samples.build_without_flag}, r"must accept 'deep_supervision' \(or \*\*kwargs\)"),
        ({"network_builder": lambda **_: None}, r"it is a lambda. Write a function"),
        (
            {"network_builder": samples.build_my_custom_network, "enable_deep_supervision": True},
            "sets enable_deep_supervision=true, but its network returns one output",
        ),
        (
            {"network_builder": nnplug.Component(samples.build_with_width, depth=3)},
            "has no setting 'depth'. It takes: width.",
        ),
        ({"patch_size": (32, 32)}, "patch_size=32x32 has 2 axes; configuration '3d_fullres' is 3D"),
        ({"spatial_dims": (2,)}, "'t' works in 2D only; configuration '3d_fullres' is 3D"),
        ({"patch_size": (25, 28, 24)}, r"can not take a patch of 25x28x24 .* A size that fits: \+patch_size=28x28x24"),
        (
            {"optimizer": nnplug.Component("torch.optim:SGD", momentun=0.9)},
            r"optimizer torch.optim:SGD has no setting 'momentun' \(did you mean momentum\?\)\. It takes: momentum, ",
        ),
        (
            {"network_builder": samples.build_without_switch},
            "still returns a list when its deep supervision is switched off, as validation and prediction do",
        ),
        (
            {"network_builder": samples.build_heads_on_demand},
            r"has other weights with deep supervision than without \(low_head",
        ),
        (
            {
                "network_builder": nnplug.Component(samples.build_with_width, width=8),
                "plans": {"architecture": {"arch_kwargs": {"width": 2}}},
            },
            "sets plans.architecture.arch_kwargs.width and network_builder.width, which are one argument",
        ),
        ({"base_trainer": torch.nn.Linear}, "is not a subclass of nnUNetTrainer"),
        (
            {"plans": {"architecture": {"arch_kwargs": {"norm_op": "x"}}}, "network_builder": samples.build_with_width},
            "sets plans.architecture.arch_kwargs.norm_op, which network_builder .* does not take",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_mistakes_are_found_before_the_first_epoch(
    make_trainer: MakeTrainer, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(NnplugError, match=message):
        make_trainer(TrainerConfig(name="t", **config)).initialize()


def test_an_axis_that_the_patch_does_not_have(make_trainer: MakeTrainer) -> None:
    with pytest.raises(NnplugError, match="names axis 2; configuration '2d' is 2D and has the axes 0 to 1"):
        make_trainer("mirror_axes=0x2", "2d")


VARIANTS = "nnunetv2.training.nnUNetTrainer.variants"


def test_an_assigned_network_replaces_that_of_the_base_trainer(make_trainer: MakeTrainer) -> None:
    """nnUNetTrainerBN makes its network in a static method of its own and not from the plans' builder."""
    base = f"{VARIANTS}.network_architecture.nnUNetTrainerBN:nnUNetTrainerBN"
    trainer = make_trainer(TrainerConfig(name="t", base_trainer=base, network_builder=samples.build_with_width))
    trainer.initialize()
    assert isinstance(trainer.network, samples.TwoConvolutions)
    assert trainer._checkpoint()["trainer_name"] == "nnUNetTrainer"


def test_an_assigned_sampler_replaces_the_loaders_of_the_base_trainer(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(TrainerConfig(name="t", base_trainer=samples.WithOwnLoaders, sampler=samples.CountingLoader))
    trainer.initialize()
    train, _ = trainer.get_dataloaders()
    assert isinstance(train.data_loader, samples.CountingLoader)


def test_mirroring_over_transforms_that_do_not_mirror(make_trainer: MakeTrainer) -> None:
    with pytest.raises(
        NnplugError, match="sets mirror_axes=0x1, and the training transforms of nnUNetTrainerNoDA do not"
    ):
        started(make_trainer("nnUNetTrainerNoDA+mirror_axes=0x1"))


def test_a_part_against_what_the_base_trainer_overrides(make_trainer: MakeTrainer) -> None:
    with pytest.raises(NnplugError, match="'dice_loss' and 'nnUNetTrainerCELoss' both set loss_fn"):
        make_trainer("nnUNetTrainerCELoss+dice_loss")
    assert "Dice" in str(started(make_trainer("nnUNetTrainerCELoss+loss_fn=@dice_loss")).loss)


def test_a_loss_that_knows_no_ignore_label_is_refused(make_trainer: MakeTrainer) -> None:
    labels = {"background": 0, "core": 1, "shell": 2, "ignore": 3}
    with pytest.raises(NnplugError, match="MyLoss does not support an ignore label, and the data set has one"):
        make_trainer(TrainerConfig(name="t", loss_fn=samples.MyLoss()), labels=labels).initialize()


def test_a_loss_that_knows_no_regions_is_refused(make_trainer: MakeTrainer) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 1}
    config = TrainerConfig(name="t", loss_fn=samples.MyLoss())
    with pytest.raises(NnplugError, match="MyLoss does not support region-based training"):
        make_trainer(config, labels=labels, regions_class_order=[1, 2]).initialize()


def test_a_model_folder_of_another_config_is_refused_with_the_difference(make_trainer: MakeTrainer) -> None:
    started(make_trainer(TrainerConfig(name="t", num_epochs=5)))

    with pytest.raises(NnplugError, match="num_epochs: 5 in the folder, 6 now"):
        make_trainer(TrainerConfig(name="t", num_epochs=6))
