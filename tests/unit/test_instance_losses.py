"""Blob loss and Dice in Voronoi cells: reference values, definitions, nnU-Net's part, precision, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnplug import LossContext, NnplugError
from nnplug.loss_contract import traits_of
from nnplug_instance_losses.channels import InstanceChannels
from nnplug_instance_losses.losses import (
    BlobDiceCELoss,
    BlobDiceLoss,
    InstanceLoss,
    RegionDiceCELoss,
    RegionDiceLoss,
)
from nnplug_instance_losses.sums import find_components, segment_sums, sum_components
from support.instances import IGNORE, KINDS, blobs, context_for, instance_term, noise, target_of
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer, stock_class
from torch.nn import functional

LOSSES = (BlobDiceLoss, BlobDiceCELoss, RegionDiceLoss, RegionDiceCELoss)
REFERENCES = Path(__file__).resolve().parents[3] / "shared" / "references"

every_loss = pytest.mark.parametrize("loss", LOSSES)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dimension = pytest.mark.parametrize("dims", [2, 3])


def value_and_gradient(loss: Callable[..., torch.Tensor], logits: torch.Tensor, *target: Any) -> Any:
    logits = logits.clone().requires_grad_()
    value = loss(logits, *target)
    value.backward()
    return value.detach(), logits.grad


def sure(target: torch.Tensor, kind: str = "labels", certainty: float = 10.0) -> torch.Tensor:
    """Logits of a prediction that equals the target."""
    if "regions" in kind:
        return certainty * (2 * target[:, :2].float() - 1)
    labels = target[:, 0].long().clamp(max=2)
    return certainty * (2 * functional.one_hot(labels, 3).movedim(-1, 1).float() - 1)


# --- values


@pytest.mark.skipif(not REFERENCES.is_dir(), reason="the reference values are not beside the project")
@pytest.mark.parametrize("connectivity", ["face", "full"])
@pytest.mark.parametrize(
    "case", ["c1_2d_single_two_blobs_fp", "c2_2d_multi_touching_diagonal", "c3_2d_single_one_empty_sample"]
)
def test_values_and_gradients_of_the_authors(case: str, connectivity: str) -> None:
    expected = json.loads((REFERENCES / "expected_losses.json").read_text())[case]
    with np.load(REFERENCES / f"{case}.npz") as arrays:
        logits, target = (torch.from_numpy(arrays[name]) for name in ("logits", "target"))
    context = LossContext(num_classes=logits.shape[1], spatial_dims=2)
    blob = expected[f"blob_dice_{connectivity}"]
    wanted = {BlobDiceLoss: blob["blob_mean_over_present_classes"]}
    if connectivity == "full":
        wanted[RegionDiceLoss] = expected["region_dice_voronoi_full_connectivity"]
        wanted[RegionDiceCELoss] = expected["region_dice_ce_voronoi_full_connectivity"]
    for loss, numbers in wanted.items():
        made = loss(context, weight_global=0, connectivity=connectivity)
        value, gradient = value_and_gradient(made, logits, target)
        assert value.item() == pytest.approx(numbers["value"], abs=5e-7)
        assert gradient.norm().item() == pytest.approx(numbers["grad_norm"], rel=1e-5)
    # the authors' totals have Dice alone as the global part, ours nnU-Net's
    stock = BlobDiceLoss(context, weight_instance=0)(logits, target).item()
    for weight in (1, 2):
        total = BlobDiceLoss(context, weight_global=weight, connectivity=connectivity)(logits, target).item()
        theirs = blob[f"total_main{weight}_blob1"]["value"] - weight * blob["main_dice"]["value"]
        assert total == pytest.approx(weight * stock + theirs, abs=1e-6)


@pytest.mark.parametrize("connectivity", ["face", "full"])
@every_dimension
@every_kind
@every_loss
def test_value_and_gradient_are_those_of_the_definition(
    loss: type[InstanceLoss], kind: str, dims: int, connectivity: str
) -> None:
    context, labels = context_for(kind, dims), blobs(dims, num_samples=3)
    labels[1] = 0
    labels[2][labels[2] == 1] = 0
    target = target_of(labels, kind)
    logits = noise(context, target).double()

    def definition(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        made = {"cells": loss.cells, "ce": loss.cross_entropy, "connectivity": connectivity}
        return instance_term(context, logits, target, **made)

    ours = value_and_gradient(loss(context, weight_global=0, connectivity=connectivity), logits, target)
    theirs = value_and_gradient(definition, logits, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@every_loss
def test_two_classes_are_computed_as_several(loss: type[InstanceLoss]) -> None:
    """A third class that is nowhere and never predicted changes nothing; two classes have a path of their own."""
    target = target_of(blobs(num_labels=1), "labels")
    logits = noise(context_for("labels", num_classes=2), target).double()
    wider = torch.cat([logits, torch.full_like(logits[:, :1], -200)], dim=1)
    two = loss(context_for("labels", num_classes=2), weight_global=0)(logits, target)
    three = loss(context_for("labels"), weight_global=0)(wider, target)
    torch.testing.assert_close(two, three)


@every_loss
def test_one_region_alone(loss: type[InstanceLoss]) -> None:
    context = LossContext(num_classes=1, spatial_dims=2, has_regions=True)
    target = target_of(blobs(), "regions")[:, :1]
    logits = noise(context, target).double()
    made = {"cells": loss.cells, "ce": loss.cross_entropy, "connectivity": "full"}
    value = loss(context, weight_global=0)(logits, target)
    torch.testing.assert_close(value, instance_term(context, logits, target, **made))


@pytest.fixture
def stock_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """nnU-Net's own loss at one resolution."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))

    def build(kind: str, dims: int, batch_dice: bool) -> Any:
        plans = made_up_plans(patch_size=(16,) * dims, batch_dice=batch_dice)
        dataset_json = made_up_dataset_json(regions="regions" in kind, ignore_label="ignore" in kind)
        return make_trainer(stock_class("nnUNetTrainer"), plans, dataset_json)._build_loss().loss

    return build


@pytest.mark.parametrize("batch_dice", [False, True])
@every_dimension
@every_kind
def test_global_part_is_nnunets_loss(kind: str, dims: int, batch_dice: bool, stock_loss: Callable[..., Any]) -> None:
    context = context_for(kind, dims, batch_dice=batch_dice)
    labels = blobs(dims)
    labels[1][labels[1] == 1] = 0
    target = target_of(labels, kind)
    logits = noise(context, target)
    theirs = value_and_gradient(stock_loss(kind, dims, batch_dice), logits, target.clone())
    for loss in LOSSES:
        for given in (target, target.int(), target.float()):
            ours = value_and_gradient(loss(context, weight_instance=0), logits, given)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@every_kind
@every_loss
def test_the_two_parts_are_weighted_and_added(loss: type[InstanceLoss], kind: str) -> None:
    context, target = context_for(kind), target_of(blobs(), kind)
    logits = noise(context, target)
    alone = [loss(context, *weights)(logits, target) for weights in ((1, 0), (0, 1))]
    torch.testing.assert_close(loss(context, 2, 0.5)(logits, target), 2 * alone[0] + 0.5 * alone[1])
    torch.testing.assert_close(loss(context)(logits, target), alone[0] + alone[1])


# --- what a right loss does


@pytest.mark.parametrize("weight_global", [0, 1])
@every_dimension
@every_kind
@every_loss
def test_perfect_is_best_and_every_false_alarm_is_worse(
    loss: type[InstanceLoss], kind: str, dims: int, weight_global: float
) -> None:
    context, labels = context_for(kind, dims), blobs(dims)
    target = target_of(labels, kind)
    made = loss(context, weight_global=weight_global)
    perfect = sure(target, kind)
    best = made(perfect, target).item()
    valid = (labels == 0) if "ignore" not in kind else (target_of(labels, kind)[:, -1:] == 0)
    background = (labels[:, 0] == 0) & (valid[:, 0] if "ignore" in kind else True)
    channel = 1 if "regions" in kind else 2
    places = background.nonzero()
    for place in (places[0], places[len(places) // 2], places[-1]):
        wrong = perfect.clone()
        wrong[(place[0], slice(None), *place[1:])] *= -1  # regions: both; classes: undecided between them
        wrong[(place[0], channel, *place[1:])] = 20
        assert made(wrong, target).item() > best + 1e-4
    everything = perfect.clone()
    everything[:, 0] = -10
    everything[:, channel] = 10
    nothing = sure(torch.zeros_like(target), kind)
    assert made(everything, target).item() > best + 0.3
    assert made(nothing, target).item() > best + 0.3


@every_kind
@every_loss
def test_gradient_pushes_the_background_down(loss: type[InstanceLoss], kind: str) -> None:
    context, labels = context_for(kind), blobs()
    target = target_of(labels, kind)
    _, gradient = value_and_gradient(loss(context, weight_global=0), noise(context, target), target)
    ignored = (
        target[:, -1:] == (1 if "regions" in kind else IGNORE) if "ignore" in kind else torch.zeros_like(labels) > 0
    )
    background = ((labels == 0) & ~ignored)[:, 0]
    channels = gradient.movedim(1, -1)
    first = 0 if "regions" in kind else 1
    assert (channels[background][:, first:].sum(1) > 0).all()
    assert (channels[ignored[:, 0]] == 0).all()
    assert (channels[(labels[:, 0] == 2) & ~ignored[:, 0]][:, -1] < 0).all()


@pytest.mark.parametrize("kind", ["ignore", "regions+ignore"])
@every_loss
def test_logits_of_ignored_voxels_change_nothing(loss: type[InstanceLoss], kind: str) -> None:
    context, target = context_for(kind), target_of(blobs(), kind)
    ignored = (target[:, -1:] == (1 if "regions" in kind else IGNORE)).expand(-1, context.num_classes, -1, -1)
    results = []
    for change in (0.0, -50.0, float("inf"), float("nan")):
        logits = noise(context, target)
        logits[ignored] += change
        results.append(value_and_gradient(loss(context), logits, target))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)
    if "regions" in kind:
        target[:, :-1][ignored] = 1
        assert loss(context)(noise(context, target), target) == results[0][0]


@pytest.mark.parametrize("kind", ["ignore", "regions+ignore"])
@every_loss
def test_batch_that_is_ignored_altogether(loss: type[InstanceLoss], kind: str) -> None:
    context = context_for(kind)
    target = target_of(torch.full((2, 1, 9, 8), IGNORE, dtype=torch.int16), kind)
    value, gradient = value_and_gradient(loss(context), noise(context, target), target)
    assert torch.isfinite(value)
    assert (gradient == 0).all()


@pytest.mark.parametrize("weight_global", [0, 1])
@every_kind
@every_loss
def test_empty_samples_keep_a_graph_and_leave_the_mean_alone(
    loss: type[InstanceLoss], kind: str, weight_global: float
) -> None:
    context = context_for(kind)
    made = loss(context, weight_global=weight_global)
    target = target_of(blobs(), kind)
    logits = noise(context, target)
    empty = target_of(torch.zeros_like(blobs()), kind)
    value, gradient = value_and_gradient(made, logits, empty)
    assert torch.isfinite(gradient).all()
    if weight_global == 0:
        assert value == 0
        wider = torch.cat([logits, logits]), torch.cat([empty, target])
        torch.testing.assert_close(made(*wider), made(logits, target))
    else:
        assert (gradient != 0).any()


def test_every_component_counts_alike() -> None:
    """A large and a small object: missing the small one costs as much as missing the large one."""
    labels = torch.zeros(1, 1, 24, 24, dtype=torch.int16)
    labels[..., 2:14, 2:14] = 1
    labels[..., 19, 19] = 1
    context = context_for("labels", num_classes=2)
    missed = []
    for place in ((slice(2, 14), slice(2, 14)), (19, 19)):
        found = labels.clone()
        found[(..., *place)] = 0
        missed.append(sure(found)[:, :2])
    for loss in (BlobDiceLoss, RegionDiceLoss):
        values = [loss(context, weight_global=0)(logits, labels).item() for logits in missed]
        assert values == pytest.approx([0.5, 0.5], abs=1e-3)


@every_loss
def test_one_voxel_of_difference_in_connectivity(loss: type[InstanceLoss]) -> None:
    """Two voxels that touch at a corner are one component or two."""
    context = context_for("labels", num_classes=2)
    target = torch.zeros(1, 1, 8, 8, dtype=torch.int16)
    target[0, 0, 2, 2] = target[0, 0, 3, 3] = 1
    logits = sure(target)[:, :2] / 5
    logits[0, :, 3, 3] *= -1
    values = {c: loss(context, weight_global=0, connectivity=c)(logits, target).item() for c in ("full", "face")}
    for connectivity, value in values.items():
        made = {"cells": loss.cells, "ce": loss.cross_entropy, "connectivity": connectivity}
        assert value == pytest.approx(instance_term(context, logits, target, **made).item(), rel=1e-5)
    assert abs(values["full"] - values["face"]) > 1e-3


# --- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_kind
@every_loss
def test_half_precision_is_computed_in_float32(loss: type[InstanceLoss], kind: str, dtype: torch.dtype) -> None:
    context, target = context_for(kind, 3), target_of(blobs(3), kind)
    logits = noise(context, target).to(dtype)
    wanted, gradient = value_and_gradient(loss(context), logits.float(), target)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, half = value_and_gradient(loss(context), logits, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(half, gradient.to(dtype))


def test_sums_of_large_volumes_do_not_drift() -> None:
    """One after the other in float32 this sum would be off by more than 1 %."""
    values = torch.full((2**21,), 0.1)
    sums = segment_sums(values, torch.ones(2**21, dtype=torch.int32), 3)
    assert sums.tolist() == pytest.approx([0, 0.1 * 2**21, 0], rel=3e-4)
    many = segment_sums(values, torch.arange(2**21), 2**21)
    assert torch.equal(many, values)


@pytest.mark.parametrize("kind", ["labels", "regions"])
@every_loss
def test_sure_and_wrong_logits_are_finite(loss: type[InstanceLoss], kind: str) -> None:
    context, target = context_for(kind), target_of(blobs(), kind)
    # 1 - probability is 1e-13 here: a difference of float32 numbers would give 0
    wrong = -sure(target, kind, 15)
    torch.testing.assert_close(loss(context)(wrong, target), loss(context)(wrong.double(), target).float())
    for certainty in (1e2, 1e4):
        value, gradient = value_and_gradient(loss(context), -sure(target, kind, certainty), target)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["labels", "two labels", "regions"])
@pytest.mark.parametrize("loss", [BlobDiceCELoss, RegionDiceCELoss])
def test_sure_and_wrong_voxels_keep_their_gradient(loss: type[InstanceLoss], kind: str) -> None:
    """As cross-entropy has it: probability less target. The probabilities themselves are 0 in float32."""
    num_classes = 2 if kind == "two labels" else 3
    context = context_for("regions" if kind == "regions" else "labels", num_classes=num_classes)
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.int16)
    labels[..., 2:4, 2:4] = 1  # one component: its cell is the whole image
    target = target_of(labels, kind)[:, : num_classes - 1]
    definition = partial(instance_term, context, cells=loss.cells, ce=True, connectivity="full")
    for certainty in (50, 500):
        wrong = -sure(target, kind, certainty)[:, : context.num_classes]
        wrong[:, 0] += 0.1 * certainty  # one of the wrong classes is the likeliest
        _, gradient = value_and_gradient(loss(context, weight_global=0), wrong, target)
        _, exact = value_and_gradient(definition, wrong.double(), target)
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-9)
        if kind == "two labels":
            _, expected = value_and_gradient(functional.cross_entropy, wrong, target[:, 0].long())
            assert expected.abs().min() > 0.01
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=0)


@every_kind
@every_loss
def test_gradient_by_finite_differences(loss: type[InstanceLoss], kind: str) -> None:
    context = context_for(kind)
    target = target_of(blobs()[:, :, :7, :6], kind).flatten(2)
    ids = loss(context).channels.of_batch([target.unflatten(2, (7, 6))])[0].flatten(2)
    components = find_components(target, ids, context, cells=loss.cells)
    logits = noise(context, target).double().requires_grad_()

    def sums(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_p = functional.logsigmoid(logits) if context.has_regions else logits.log_softmax(1)
        log_opposite = functional.logsigmoid(-logits) if context.has_regions else None
        made = sum_components(log_p, log_opposite, components, cross_entropy=loss.cross_entropy)
        return tuple(values for values in made if values is not None)

    assert torch.autograd.gradcheck(sums, (logits,), fast_mode=True)


# --- deep supervision


def pyramid(context: LossContext, target: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and targets at full, half and quarter resolution."""
    sizes = [[round(side / factor) for side in target.shape[2:]] for factor in (1, 2, 4)]
    targets = [functional.interpolate(target.float(), size, mode="nearest-exact").to(target.dtype) for size in sizes]
    return [noise(context, scaled, seed=number) for number, scaled in enumerate(targets)], targets


@every_kind
@every_loss
def test_outputs_are_weighted_as_nnunet_weights_them(loss: type[InstanceLoss], kind: str) -> None:
    context = context_for(kind, supervision_weights=(0.6, 0.4, 0.0))
    outputs, targets = pyramid(context, target_of(blobs(), kind))
    extra = loss(context).channels.of_batch(targets)
    one = [loss(context)(*tensors).item() for tensors in zip(outputs, targets, extra, strict=True)]
    assert loss(context)(outputs, targets).item() == pytest.approx(0.6 * one[0] + 0.4 * one[1], rel=1e-5)
    stock = loss(context, weight_instance=0)
    rest = [stock(*tensors).item() for tensors in zip(outputs, targets, extra, strict=True)]
    value = loss(context, deep_supervision="full")(outputs, targets).item()
    assert value == pytest.approx(one[0] - rest[0] + 0.6 * rest[0] + 0.4 * rest[1], rel=1e-5)


@every_kind
@every_loss
def test_no_components_where_their_weight_is_0(
    loss: type[InstanceLoss], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for, summed = [], []
    find, term = InstanceChannels.of_sample, InstanceLoss._instance_term
    monkeypatch.setattr(InstanceChannels, "of_sample", lambda *args: looked_for.append(1) or find(*args))
    monkeypatch.setattr(InstanceLoss, "_instance_term", lambda *args: summed.append(1) or term(*args))
    context = context_for(kind, supervision_weights=(0.6, 0.3, 0.1))
    outputs, targets = pyramid(context, target_of(blobs(), kind))
    without = loss(context, weight_instance=0)
    assert traits_of(without, loss).target_transform is None
    value, gradient = value_and_gradient(lambda logits: without([logits, *outputs[1:]], targets), outputs[0])
    assert looked_for == summed == []
    assert gradient.any()
    assert value > -1
    loss(context, deep_supervision="full")(outputs, targets)
    assert len(summed) == 1
    # DDP needs a gradient of every output, also where it is 0
    lower = outputs[1].clone().requires_grad_()
    loss(context, weight_global=0, deep_supervision="full")([outputs[0], lower, outputs[2]], targets).backward()
    assert not lower.grad.any()


def test_components_are_those_of_the_full_resolution() -> None:
    """Two objects that touch at half resolution are still two, and one that vanishes does not count."""
    target = torch.zeros(1, 1, 16, 16, dtype=torch.int16)
    target[0, 0, 2:6, 1:4] = target[0, 0, 2:6, 5:8] = target[0, 0, 12, 12] = 1
    context = context_for("labels", num_classes=2, supervision_weights=(1e-9, 1 - 1e-9))
    targets = [target, functional.interpolate(target.float(), (8, 8), mode="nearest-exact").short()]
    assert targets[1].sum() < (target[..., :8].sum() / 2), "the single voxel is gone"
    ids = BlobDiceLoss(context).channels.of_batch(targets)[1]
    assert ids.unique().tolist() == [0, 1, 2]
    # the first object of two is missed
    found = torch.where(ids == 1, 0, targets[1])
    outputs = [sure(target)[:, :2], sure(found)[:, :2]]
    for loss in (BlobDiceLoss, RegionDiceLoss):
        assert loss(context, weight_global=0)(outputs, targets).item() == pytest.approx(0.5, abs=1e-3)


# --- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_global": -1}, "loss_fn.weight_global: expected a number >= 0, got -1."),
        ({"weight_instance": float("nan")}, "loss_fn.weight_instance: expected a number >= 0, got nan."),
        ({"weight_instance": "much"}, "loss_fn.weight_instance: expected a number >= 0, got 'much'."),
        ({"weight_global": 0, "weight_instance": 0}, "loss_fn: weight_global and weight_instance are both 0."),
        ({"connectivity": 26}, "loss_fn.connectivity: expected face or full, got 26."),
        ({"deep_supervision": True}, "loss_fn.deep_supervision: expected all or full, got True."),
    ],
)
@every_loss
def test_settings_out_of_range(loss: type[InstanceLoss], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        loss(context_for("labels"), **settings)
    assert str(caught.value) == message


@every_loss
def test_data_set_without_foreground(loss: type[InstanceLoss]) -> None:
    with pytest.raises(NnplugError) as caught:
        loss(context_for("labels", num_classes=1))
    assert str(caught.value) == "loss_fn: the data set has no label but the background."


@pytest.mark.parametrize("value", [-1, 3])
@every_loss
def test_target_with_a_label_that_there_is_not(loss: type[InstanceLoss], value: int) -> None:
    target = target_of(blobs(), "labels")
    target[0, 0, 0, 0] = value
    context = context_for("labels")
    with pytest.raises(NnplugError) as caught:
        loss(context)(noise(context, target), target)
    assert str(caught.value) == f"A target holds the label {value}; the data set has 0 to 2."


@every_loss
def test_traits(loss: type[InstanceLoss]) -> None:
    traits = traits_of(loss(context_for("labels")), loss)
    assert traits.target_format == "label_map"
    assert traits.handles_deep_supervision
    assert traits.supports_ignore_label
    assert traits.supports_regions
    assert traits.target_transform().cells is loss.cells
