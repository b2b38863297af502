"""Losses that want more than the labels: what the data workers append reaches them, and only them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nnplug
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnplug import Component, LossContext, TrainerConfig, loss_traits
from nnplug.training.losses import add_target_transform, build_loss, supervision_weights, target_transform_of
from nnplug.training.trainer import build_trainer_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.datasets import DatasetForTests
from torch import nn

MakeTrainer = Callable[..., Any]
INSTANCE_LOSSES = ("blob_dice_loss", "blob_dice_ce_loss", "region_dice_loss", "region_dice_ce_loss")


class Doubled(SegOnlyTransform):
    """Appends a channel with ``factor`` times the first."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([segmentation, self.factor * segmentation[:1].int()])


class Wanting(nn.Module):
    """Keeps what it is called with."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.calls: list[tuple[Any, Any]] = []

    def target_transform(self) -> Doubled:
        return Doubled(self.factor)

    def forward(self, output: Any, target: Any, extra: Any) -> torch.Tensor:
        self.calls.append((target, extra))
        return (output[0] if isinstance(output, list) else output).square().mean()


@loss_traits(target_format="one_hot", supports_ignore_label=True, supports_regions=True)
class WantingOneHot(Wanting):
    pass


@loss_traits(handles_deep_supervision=True)
class WantingLists(Wanting):
    pass


class NotWanting(nn.Module):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert target.shape[1] == 1
        return output.mean()


def labels_and_extra(*sizes: int) -> list[torch.Tensor]:
    labels = [torch.randint(0, 4, (2, 1, size, size)) for size in sizes]
    return [torch.cat([values, 2 * values], dim=1).int() for values in labels]


# --- the adapter


def test_extra_channels_are_an_argument_of_their_own() -> None:
    loss = build_loss(Component(Wanting, factor=3), LossContext(num_classes=4, spatial_dims=2), None)
    (target,) = labels_and_extra(6)
    loss(torch.zeros(2, 4, 6, 6), target)
    loss(torch.zeros(2, 4, 6, 6), target[:, :1])
    (labels, extra), without = loss.loss.calls
    assert torch.equal(labels, target[:, :1])
    assert torch.equal(extra, target[:, 1:])
    assert extra.dtype == torch.int32
    assert without[1] is None
    assert target_transform_of(loss)().factor == 3


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("ignore_label", [None, 3])
def test_one_hot_targets_and_regions_are_split_from_them(has_regions: bool, ignore_label: int | None) -> None:
    num_classes = 4 if ignore_label is None else 3
    context = LossContext(num_classes=num_classes, spatial_dims=2, ignore_label=ignore_label, has_regions=has_regions)
    loss = build_loss(WantingOneHot(), context, None)
    plain = build_loss(
        loss_traits(target_format="one_hot", supports_ignore_label=True, supports_regions=True)(
            lambda _, target: target
        ),
        context,
        None,
    )
    (target,) = labels_and_extra(6)
    if has_regions:
        regions = torch.rand(2, num_classes + (ignore_label is not None), 6, 6) > 0.5
        target = torch.cat([regions.int(), target[:, 1:]], dim=1)
    loss(torch.zeros(2, num_classes, 6, 6), target)
    ((given, extra),) = loss.loss.calls
    assert torch.equal(given, plain(None, target[:, :-1]))
    assert given.dtype == torch.float32
    assert given.shape[1] == num_classes + (ignore_label is not None)
    assert torch.equal(extra, target[:, -1:])


@pytest.mark.parametrize("made", [Wanting, WantingLists])
def test_deep_supervision_hands_on_every_scale(made: type[Wanting]) -> None:
    context = LossContext(num_classes=4, spatial_dims=2)
    loss = build_loss(made(), context, supervision_weights(3, last=1e-6))
    targets = labels_and_extra(8, 4, 2)
    loss([torch.zeros(2, 4, size, size) for size in (8, 4, 2)], targets)
    calls = target_of_adapter(loss).calls
    given = [extra for _, extra in calls] if made is Wanting else calls[0][1]
    assert [e.tolist() for e in given] == [target[:, 1:].tolist() for target in targets]
    loss([torch.zeros(2, 4, size, size) for size in (8, 4, 2)], [target[:, :1] for target in targets])
    assert calls[-1][1] is None


def target_of_adapter(loss: Any) -> Wanting:
    return loss.loss if isinstance(loss.loss, Wanting) else loss.loss.loss


def test_losses_without_the_trait_want_nothing() -> None:
    context = LossContext(num_classes=4, spatial_dims=2)
    for loss_fn in (NotWanting(), Component(NotWanting), lambda output, _: output.mean()):
        assert target_transform_of(build_loss(loss_fn, context, [1.0])) is None
    assert target_transform_of(NotWanting()) is None
    assert target_transform_of(None) is None


# --- the place among the transforms


class Other(BasicTransform):
    pass


def test_the_place_is_before_the_scaling() -> None:
    before, scaling, added = Other(), DownsampleSegForDSTransform([[1, 1]]), Doubled(2)
    both = ComposeTransforms([before, scaling])
    assert add_target_transform(both, added, deep_supervision=True).transforms == [before, added, scaling]
    assert both.transforms == [before, scaling], "the object of the config is left alone"
    for alone in (ComposeTransforms([before]), before):
        assert add_target_transform(alone, added, deep_supervision=False).transforms == [before, added]
        assert add_target_transform(alone, added, deep_supervision=True) is None


def test_in_a_cascade_the_segmentation_of_the_first_stage_is_gone_before() -> None:
    transforms = nnUNetTrainer.get_training_transforms(
        (8, 8), (-0.1, 0.1), [[1, 1], [0.5, 0.5]], (), False, is_cascaded=True, foreground_labels=[1, 2]
    )
    transforms = add_target_transform(transforms, Doubled(2), deep_supervision=True)
    segmentation = torch.randint(0, 3, (2, 10, 10), dtype=torch.int16)
    made = transforms(image=torch.zeros(1, 10, 10), segmentation=segmentation)
    assert made["image"].shape == (3, 8, 8)
    for scaled, side in zip(made["segmentation"], (8, 4), strict=True):
        assert scaled.shape == (2, side, side)
        assert torch.equal(scaled[1], 2 * scaled[0])
        assert scaled.max() > 0


# --- on a trainer


@pytest.fixture
def make_trainer(tiny_dataset: DatasetForTests) -> Iterator[MakeTrainer]:
    def make(trainer: Any, configuration: str = "3d_fullres", **labels: Any) -> Any:
        folder = tiny_dataset.preprocessed_folder
        plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
        dataset_json = {**json.loads((folder / "dataset.json").read_text()), **labels}
        made = build_trainer_class(nnplug.resolve(trainer))(plans, configuration, 0, dataset_json, torch.device("cpu"))
        made.on_train_start()
        made.on_epoch_start()
        made.on_train_epoch_start()
        return made

    with tiny_dataset.activated():
        yield make


def num_channels(batch: dict[str, Any]) -> int:
    target = batch["target"]
    return (target[0] if isinstance(target, list) else target).shape[1]


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [1, 2]}
IGNORE = {"labels": {"background": 0, "core": 1, "ignore": 2}}
BOTH = {"labels": {**REGIONS["labels"], "ignore": 3}, "regions_class_order": [1, 2]}
# the data set was preprocessed without an ignore label, so only foreground can be looked for in it
FORCED = "+oversample_foreground_percent=1"


@pytest.mark.parametrize(
    ("name", "configuration", "dataset", "plain", "extra"),
    [
        ("blob_dice_loss", "3d_fullres", {}, 1, 1),
        ("blob_dice_ce_loss" + FORCED, "2d", IGNORE, 1, 1),
        ("blob_dice_loss", "2d", REGIONS, 2, 2),
        ("region_dice_loss" + FORCED, "3d_fullres", IGNORE, 1, 1),
        ("region_dice_ce_loss" + FORCED, "2d", BOTH, 3, 2),
        ("region_dice_loss+no_deep_supervision", "2d", {}, 1, 2),
        ("blob_dice_loss+da5", "2d", {}, 1, 1),
    ],
)
def test_workers_make_what_training_needs_and_validation_does_without(
    make_trainer: MakeTrainer, name: str, configuration: str, dataset: dict[str, Any], plain: int, extra: int
) -> None:
    trainer = make_trainer(name, configuration, **dataset)
    batch = next(trainer.dataloader_train)
    assert num_channels(batch) == plain + extra
    loss = trainer.train_step(batch)["loss"]
    # the same from the labels alone, in the step
    target = batch["target"]
    bare = [t[:, :plain] for t in target] if isinstance(target, list) else target[:, :plain]
    with torch.no_grad():
        output = trainer.network(batch["data"])
        torch.testing.assert_close(trainer.loss(output, bare), trainer.loss(output, target))
    validation = next(trainer.dataloader_val)
    assert num_channels(validation) == plain
    trainer.network.eval()
    with torch.no_grad():
        result = trainer.validation_step(validation)
    assert np.isfinite(loss)
    assert np.isfinite(result["loss"])
    assert len(result["tp_hard"]) == len(trainer.label_manager.foreground_labels)


class ScalesByItself(SegOnlyTransform):
    """Makes the list of targets, and nobody knows."""

    def __init__(self, scales: Any) -> None:
        super().__init__()
        self.scaling = DownsampleSegForDSTransform(scales)

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **_: Any) -> Any:
        return self.scaling(segmentation=segmentation)["segmentation"]


def own_scaling(deep_supervision_scales: Any, **others: Any) -> BasicTransform:
    plain = nnUNetTrainer.get_training_transforms(deep_supervision_scales=None, **others)
    return ComposeTransforms([*plain.transforms, ScalesByItself(deep_supervision_scales)])


class OwnLoaders(nnUNetTrainer):
    def get_dataloaders(self) -> Any:
        return super().get_dataloaders()


@pytest.mark.parametrize("field", ["training_transforms", "base_trainer"])
def test_what_workers_do_not_make_is_made_in_the_step(make_trainer: MakeTrainer, field: str) -> None:
    own = {"training_transforms": own_scaling, "base_trainer": OwnLoaders}[field]
    blob = nnplug.resolve("blob_dice_loss").config
    trainer = make_trainer(TrainerConfig(name="t", loss_fn=blob.loss_fn, **{field: own}), "2d")
    batch = next(trainer.dataloader_train)
    assert num_channels(batch) == 1
    assert np.isfinite(trainer.train_step(batch)["loss"])
    said = "computed in the training step and not by the data workers" in Path(trainer.log_file).read_text()
    assert said == (field == "training_transforms")


@pytest.mark.parametrize("name", INSTANCE_LOSSES)
def test_settings_after_the_name_arrive(make_trainer: MakeTrainer, name: str) -> None:
    settings = "+loss_fn.connectivity=face+loss_fn.deep_supervision=full"
    loss = make_trainer(name + settings, "2d").loss.loss
    assert (loss.weight_global, loss.weight_instance, loss.deep_supervision) == (1.0, 1.0, "full")
    assert loss.context.supervision_weights == pytest.approx(supervision_weights(len(loss.context.supervision_weights)))
    assert loss.target_transform().neighbours == 4


def test_a_label_that_there_is_not_is_an_error(make_trainer: MakeTrainer) -> None:
    labels = {"labels": {"background": 0, "core": 1}}
    trainer = make_trainer("blob_dice_loss", **labels)

    def load_some() -> None:
        for _ in range(20):
            next(trainer.dataloader_train)

    with pytest.raises(nnplug.NnplugError, match=r"The segmentation holds the value 2, .* are 0 to 1\."):
        load_some()
