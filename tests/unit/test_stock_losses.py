"""The losses of nnplug_stock give the values and gradients of nnU-Net's trainer classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nnplug import LossContext, NnplugError
from nnplug.loss_contract import traits_of
from nnplug_stock import losses
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer, stock_class
from torch.nn import functional

IGNORE = 3

# factory, its settings, nnU-Net's class, kinds of data that both take
EQUAL = [
    (losses.dice_loss, {}, "nnUNetTrainerDiceLoss", ("labels", "regions")),
    (
        losses.dice_ce_loss,
        {"smooth": 0},
        "nnUNetTrainerDiceCELoss_noSmooth",
        ("labels", "ignore", "regions", "regions+ignore"),
    ),
    (losses.dice_ce_loss, {}, "nnUNetTrainer", ("labels", "ignore", "regions", "regions+ignore")),
    (losses.ce_loss, {}, "nnUNetTrainerCELoss", ("labels", "ignore")),
    (losses.topk_loss, {"k": 10}, "nnUNetTrainerTopk10Loss", ("labels", "ignore")),
    (losses.topk_loss, {"k": 10, "label_smoothing": 0.1}, "nnUNetTrainerTopk10LossLS01", ("labels", "ignore")),
    (losses.dice_topk_loss, {"k": 10}, "nnUNetTrainerDiceTopK10Loss", ("labels", "ignore")),
]
CASES = [
    pytest.param(make, settings, stock, kind, id=f"{make.__name__}-{stock}-{kind}")
    for make, settings, stock, kinds in EQUAL
    for kind in kinds
]


def context_for(kind: str, dims: int = 3, *, batch_dice: bool = False) -> LossContext:
    return LossContext(
        num_classes=2 if "regions" in kind else 3,
        spatial_dims=dims,
        ignore_label=IGNORE if "ignore" in kind else None,
        has_regions="regions" in kind,
        batch_dice=batch_dice,
    )


def example(context: LossContext, size: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, C, *) and the target that nnU-Net's loader would give for the kind of data."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 1) + (size,) * context.spatial_dims
    output = 3 * torch.randn((2, context.num_classes, *shape[2:]), generator=generator)
    num_values = 3 + (context.ignore_label is not None)
    labels = torch.randint(0, num_values, shape, generator=generator)
    if not context.has_regions:
        return output, labels.to(torch.int16)
    channels = [(labels == 1) | (labels == 2), labels == 2]
    channels += [labels == IGNORE] * (context.ignore_label is not None)
    return output, torch.cat(channels, 1).float()


def value_and_gradient(loss: Any, output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = output.clone().requires_grad_()
    value = loss(output, target.clone())
    value.backward()
    return value.detach(), output.grad


@pytest.fixture
def stock_loss(tmp_path, monkeypatch):
    """The loss of a trainer class at one resolution, as the class itself builds it."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))

    def build(name: str, kind: str, dims: int, batch_dice: bool) -> Any:
        plans = made_up_plans(patch_size=(16,) * dims, batch_dice=batch_dice)
        dataset_json = made_up_dataset_json(regions="regions" in kind, ignore_label="ignore" in kind)
        return make_trainer(stock_class(name), plans, dataset_json)._build_loss().loss

    return build


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("make", "settings", "stock", "kind"), CASES)
def test_value_and_gradient_are_those_of_the_stock_class(make, settings, stock, kind, dims, batch_dice, stock_loss):
    context = context_for(kind, dims, batch_dice=batch_dice)
    output, target = example(context)
    theirs = value_and_gradient(stock_loss(stock, kind, dims, batch_dice), output, target)
    ours = value_and_gradient(make(context=context, **settings), output, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    assert theirs[1].abs().max() > 0


@pytest.mark.parametrize(
    ("make", "regions"),
    [
        (losses.dice_loss, True),
        (losses.dice_ce_loss, True),
        (losses.ce_loss, False),
        (losses.topk_loss, False),
        (losses.dice_topk_loss, False),
    ],
)
def test_traits_say_what_the_loss_takes(make, regions):
    traits = traits_of(make)
    assert traits.target_format == "label_map"
    assert not traits.handles_deep_supervision
    assert traits.supports_ignore_label
    assert traits.supports_regions is regions


@pytest.mark.parametrize("kind", ["ignore", "regions+ignore"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_of_half_ignored_volume_is_dice_of_the_other_half(kind, batch_dice):
    context = context_for(kind, batch_dice=batch_dice)
    output, target = example(context)
    visible = (slice(None), slice(None), slice(0, 6))
    target[:, :, 6:] = 0
    if context.has_regions:
        target[:, -1] = 0
        target[:, -1, 6:] = 1
        visible_target = target[visible][:, :-1]
    else:
        target[target == IGNORE] = 0
        target[:, :, 6:] = IGNORE
        visible_target = target[visible]
    whole = losses.dice_loss(context=context)
    half = losses.dice_loss(
        context=context_for(kind.removesuffix("+ignore") if context.has_regions else "labels", batch_dice=batch_dice)
    )
    value, gradient = value_and_gradient(whole, output, target)
    expected, _ = value_and_gradient(half, output[visible], visible_target)
    torch.testing.assert_close(value, expected)
    assert gradient[:, :, 6:].abs().max() == 0
    assert gradient[:, :, :6].abs().max() > 0


@pytest.mark.parametrize(
    "make", [losses.dice_loss, losses.ce_loss, losses.topk_loss, losses.dice_topk_loss, losses.dice_ce_loss]
)
def test_a_batch_without_any_label_has_a_finite_loss_and_no_gradient(make):
    context = context_for("ignore")
    output, target = example(context)
    target[:] = IGNORE
    value, gradient = value_and_gradient(make(context=context), output, target)
    assert math.isfinite(value)
    assert gradient.abs().max() == 0


def test_topk_of_fewer_voxels_than_one_share_takes_the_worst_one():
    context = context_for("labels")
    output, target = example(context, size=1)
    worst = functional.cross_entropy(output, target[:, 0].long(), reduction="none").max()
    torch.testing.assert_close(losses.topk_loss(context=context, k=10)(output, target), worst)


def test_topk_of_all_voxels_is_cross_entropy():
    context = context_for("labels")
    output, target = example(context)
    torch.testing.assert_close(
        losses.topk_loss(context=context, k=100)(output, target), losses.ce_loss(context=context)(output, target)
    )


def test_weights_of_dice_and_cross_entropy():
    context = context_for("labels")
    output, target = example(context)
    weighted = losses.dice_ce_loss(context=context, weight_ce=0.5, weight_dice=2)(output, target)
    dice, ce = losses.dice_loss(context=context)(output, target), losses.ce_loss(context=context)(output, target)
    torch.testing.assert_close(weighted, 0.5 * ce + 2 * dice)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (losses.dice_loss, {"smooth": -1}, "loss_fn.smooth: expected a number >= 0, got -1."),
        (losses.topk_loss, {"k": 0}, "loss_fn.k: expected a number > 0 and <= 100, got 0."),
        (losses.topk_loss, {"k": 101}, "loss_fn.k: expected a number > 0 and <= 100, got 101."),
        (losses.dice_topk_loss, {"k": True}, "loss_fn.k: expected a number > 0 and <= 100, got True."),
        (
            losses.topk_loss,
            {"label_smoothing": 2},
            "loss_fn.label_smoothing: expected a number from 0 to 1, got 2.",
        ),
        (losses.dice_ce_loss, {"weight_dice": -1}, "loss_fn.weight_dice: expected a number >= 0, got -1."),
        (losses.dice_ce_loss, {"weight_ce": math.nan}, "loss_fn.weight_ce: expected a number >= 0, got nan."),
    ],
)
def test_a_setting_out_of_range_is_refused(make, settings, message):
    with pytest.raises(NnplugError) as error:
        make(context=context_for("labels"), **settings)
    assert str(error.value) == message


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(NnplugError, match=r"^loss_fn.weight_dice is 0: for cross-entropy alone take ce_loss\.$"):
        losses.dice_ce_loss(context=context_for("labels"), weight_dice=0)
    with pytest.raises(NnplugError, match=r"^loss_fn.weight_ce and loss_fn.weight_dice are both 0\.$"):
        losses.dice_ce_loss(context=context_for("regions"), weight_ce=0, weight_dice=0)
    output, target = example(context_for("regions"))
    assert losses.dice_ce_loss(context=context_for("regions"), weight_dice=0)(
        output.requires_grad_(), target
    ).requires_grad
