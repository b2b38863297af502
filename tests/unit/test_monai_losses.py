"""MONAI's losses on nnU-Net's targets: sign, ignore label, regions, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nnplug import LossContext, NnplugError
from nnplug.loss_contract import traits_of
from nnplug_monai import losses
from support.monai_networks import one_thread  # noqa: F401
from torch.nn import functional as F

LOSSES = {
    "generalized_dice": losses.GeneralizedDiceLoss,
    "dice_focal": losses.DiceFocalLoss,
    "tversky": losses.TverskyLoss,
    "soft_cldice": losses.SoftClDiceLoss,
    "hausdorff_dt": losses.HausdorffDTLoss,
}
IGNORE = 3


def make(name: str, *, dims: int = 3, regions: bool = False, ignore: bool = False, **settings: Any) -> torch.nn.Module:
    batch_dice = settings.pop("batch_dice", False)
    context = LossContext(
        num_classes=2 if regions else 3,
        spatial_dims=dims,
        ignore_label=IGNORE if ignore else None,
        has_regions=regions,
        batch_dice=batch_dice,
    )
    return LOSSES[name](context=context, **settings)


def labels_of(dims: int) -> torch.Tensor:
    """Two samples with a box of label 1 and an adjoining box of label 2: (2, *spatial)."""
    labels = torch.zeros(2, *(14, 12, 10)[:dims], dtype=torch.long)
    labels[0, 2:7, 2:8] = 1
    labels[0, 7:10, 2:8] = 2
    labels[1, 4:8, 3:6] = 1
    labels[1, 8:12, 3:6] = 2
    if dims == 3:
        labels[..., :2] = 0
        labels[..., 8:] = 0
    return labels


def target_of(labels: torch.Tensor, *, regions: bool = False, ignored: torch.Tensor | None = None) -> torch.Tensor:
    """One-hot classes, or the regions {1, 2} and {2}; the ignore channel last."""
    if regions:
        target = torch.stack([labels > 0, labels == 2], dim=1).float()
    else:
        target = F.one_hot(labels, 3).movedim(-1, 1).float()
    if ignored is None:
        return target
    return torch.cat([target * ~ignored[:, None], ignored[:, None].float()], dim=1)


def logits_for(target: torch.Tensor, certainty: float = 20.0) -> torch.Tensor:
    return (target * 2 - 1) * certainty


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


every_loss = pytest.mark.parametrize("name", LOSSES)
every_kind = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
every_dimension = pytest.mark.parametrize("dims", [2, 3], ids=["2d", "3d"])


@every_dimension
@every_kind
@every_loss
def test_perfect_prediction_is_best_and_wrong_one_worst(name: str, regions: bool, dims: int) -> None:
    loss, target = make(name, dims=dims, regions=regions), target_of(labels_of(dims), regions=regions)
    perfect = loss(logits_for(target), target).item()
    unsure = loss(logits_for(target, 0.3), target).item()
    wrong = loss(logits_for(1 - target), target).item()
    assert -1e-6 < perfect < 1e-3
    assert perfect + 0.02 < unsure < wrong


@every_kind
@every_loss
def test_following_the_gradient_reaches_the_target(name: str, regions: bool) -> None:
    loss, target = make(name, dims=2, regions=regions), target_of(labels_of(2), regions=regions)
    logits = noise(*target.shape).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    found = (logits > 0).float() if regions else F.one_hot(logits.argmax(1), 3).movedim(-1, 1).float()
    first = 0 if regions else 1  # the background is not what is looked for, and two losses leave it out
    assert (found == target)[:, first:].float().mean() > 0.97


@every_dimension
@every_kind
@every_loss
def test_ignored_voxels_change_neither_value_nor_gradient(name: str, regions: bool, dims: int) -> None:
    labels = labels_of(dims)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    ignored[:, 5:9, 1:7] = True
    ignored[0, 0] = True
    loss, target = (
        make(name, dims=dims, regions=regions, ignore=True),
        target_of(labels, regions=regions, ignored=ignored),
    )
    mask = ignored[:, None].expand(-1, 2 if regions else 3, *[-1] * dims)
    values, gradients = [], []
    for change in (0.0, 5.0, -1e4, float("inf")):
        logits = noise(*mask.shape)
        logits[mask] += change
        logits.requires_grad_()
        value = loss(logits, target)
        value.backward()
        values.append(value.item())
        gradients.append(logits.grad)
    assert values == [values[0]] * 4
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert (gradients[0][mask] == 0).all()
    assert (gradients[0][~mask] != 0).any()
    # what an ignored voxel holds in the other channels does not matter either
    dirty = target.clone()
    dirty[:, :-1][mask] = 1
    assert loss(noise(*mask.shape), dirty).item() == values[0]
    unmasked = make(name, dims=dims, regions=regions)(noise(*mask.shape), target_of(labels, regions=regions))
    assert abs(unmasked.item() - values[0]) > 1e-4


@every_kind
@every_loss
def test_patch_of_ignored_voxels_only_has_no_gradient(name: str, regions: bool) -> None:
    labels = labels_of(3)
    target = target_of(labels, regions=regions, ignored=torch.ones_like(labels, dtype=torch.bool))
    logits = noise(2, 2 if regions else 3, *labels.shape[1:]).requires_grad_()
    value = make(name, regions=regions, ignore=True)(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", ["generalized_dice", "dice_focal", "tversky"])
def test_ignoring_a_half_equals_cutting_it_off(name: str) -> None:
    labels, logits = labels_of(2), noise(2, 3, 14, 12)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    ignored[:, 8:] = True
    masked = make(name, dims=2, ignore=True)(logits, target_of(labels, ignored=ignored))
    cut = make(name, dims=2)(logits[:, :, :8], target_of(labels[:, :8]))
    torch.testing.assert_close(masked, cut)


@every_loss
def test_distance_and_focal_parts_do_not_fade_with_the_share_of_ignored_voxels(name: str) -> None:
    """Ignoring correct background far away leaves the loss of the rest as large as it was, or larger."""
    labels = labels_of(2)
    wide = F.pad(labels, (0, 12))
    ignored = torch.zeros_like(wide, dtype=torch.bool)
    ignored[:, :, 12:] = True
    loss, narrow = make(name, dims=2, ignore=True), make(name, dims=2)
    logits = logits_for(target_of(labels), 0.5)
    part = narrow(logits, target_of(labels)).item()
    whole = loss(F.pad(logits, (0, 12)), target_of(wide, ignored=ignored)).item()
    assert whole == pytest.approx(part, rel=0.05)


@every_loss
def test_no_region_is_taken_for_background(name: str) -> None:
    """MONAI's include_background=False would drop channel 0, which is a region here."""
    target = target_of(labels_of(2), regions=True)
    logits = noise(*target.shape).requires_grad_()
    make(name, dims=2, regions=True, include_background=False)(logits, target).backward()
    assert all((logits.grad[:, channel] != 0).any() for channel in range(2))


@every_loss
def test_one_region_alone_works(name: str) -> None:
    context = LossContext(num_classes=1, spatial_dims=2, has_regions=True)
    target = target_of(labels_of(2), regions=True)[:, :1]
    loss = LOSSES[name](context=context)
    assert loss(logits_for(target), target) < loss(logits_for(1 - target), target)


@every_kind
@every_loss
def test_half_precision_is_computed_in_float32(name: str, regions: bool) -> None:
    target = target_of(labels_of(3), regions=regions)
    loss, logits = make(name, regions=regions), (noise(*target.shape) * 8).half()
    wanted = loss(logits.float(), target)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            got = loss(logits, target.half())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted)


@every_loss
def test_class_that_is_absent_has_a_finite_gradient(name: str) -> None:
    target = target_of(labels_of(2) * 0)
    logits = noise(*target.shape).requires_grad_()
    make(name, dims=2)(logits, target).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("generalized_dice", {}),
        ("dice_focal", {}),
        ("tversky", {}),
        ("soft_cldice", {"alpha": 0.0}),
        ("hausdorff_dt", {"lambda_hausdorff": 0.0}),
    ],
)
def test_batch_dice_takes_the_batch_for_one_large_sample(name: str, settings: dict[str, Any]) -> None:
    target, logits = target_of(labels_of(2)), noise(2, 3, 14, 12)
    value = make(name, dims=2, batch_dice=True, **settings)(logits, target)
    as_one = [torch.cat(list(t), dim=1)[None] for t in (logits, target)]
    torch.testing.assert_close(value, make(name, dims=2, **settings)(*as_one))
    assert value != make(name, dims=2, **settings)(logits, target)


@every_loss
def test_traits(name: str) -> None:
    traits = traits_of(make(name), LOSSES[name])
    assert (traits.target_format, traits.handles_deep_supervision) == ("one_hot", False)
    assert traits.supports_ignore_label
    assert traits.supports_regions


# --- the formulas, on values worked out by hand ----------------------------------------------------------------------


def flat(foreground: list[float]) -> torch.Tensor:
    """A (1, 2, 1, n) one-hot target or probability map from the values of the foreground."""
    values = torch.tensor(foreground)[None, None, None]
    return torch.cat([1 - values, values], dim=1)


def as_logits(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp(min=1e-20).log()


def small(name: str, **settings: Any) -> torch.nn.Module:
    return LOSSES[name](context=LossContext(num_classes=2, spatial_dims=2), **settings)


def test_tversky_value() -> None:
    # TP 2, FP 1, FN 2 -> 2 / (2 + 0.3 * 1 + 0.7 * 2)
    target, found = flat([1, 1, 1, 1, 0, 0, 0, 0]), flat([1, 1, 0, 0, 1, 0, 0, 0])
    value = small("tversky", include_background=False)(as_logits(found), target).item()
    assert value == pytest.approx(1 - 2 / 3.7, abs=1e-5)
    dice = small("tversky", alpha=0.5, beta=0.5, include_background=False)(as_logits(found), target).item()
    assert dice == pytest.approx(1 - 2 * 2 / (4 + 3), abs=1e-5)


@pytest.mark.parametrize(("w_type", "weight"), [("square", lambda v: v**-2.0), ("simple", lambda v: 1 / v)])
def test_generalized_dice_value(w_type: str, weight: Any) -> None:
    # foreground: 4 voxels, 3 found, 2 of them right; background: 8 voxels, 9 found, 7 right
    target, found = flat([1] * 4 + [0] * 8), flat([1, 1, 0, 0, 1] + [0] * 7)
    value = small("generalized_dice", w_type=w_type)(as_logits(found), target).item()
    overlap = weight(4) * 2 + weight(8) * 7
    total = weight(4) * (4 + 3) + weight(8) * (8 + 9)
    assert value == pytest.approx(1 - 2 * overlap / total, abs=1e-5)


def test_generalized_dice_sees_large_classes_that_are_wrong() -> None:
    labels = torch.zeros(1, 400, 400, dtype=torch.long)
    labels[:, :200] = 1
    target = F.one_hot(labels, 2).movedim(-1, 1).float()
    assert small("generalized_dice")(logits_for(1 - target), target).item() == pytest.approx(1, abs=1e-4)


def test_focal_part_is_cross_entropy_over_channels_where_gamma_is_0() -> None:
    labels = labels_of(2)
    logits = noise(2, 3, 14, 12)
    value = make("dice_focal", dims=2, gamma=0, lambda_dice=0)(logits, target_of(labels))
    torch.testing.assert_close(value, F.cross_entropy(logits, labels) / 3)
    target = target_of(labels, regions=True)
    value = make("dice_focal", dims=2, gamma=0, lambda_dice=0, regions=True)(logits[:, :2], target)
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(logits[:, :2], target))


def test_focal_part_turns_from_easy_voxels() -> None:
    target = flat([1, 1])
    easy, hard = as_logits(flat([0.9, 0.9])), as_logits(flat([0.2, 0.2]))
    ratio = {
        gamma: (small("dice_focal", gamma=gamma, lambda_dice=0)(hard, target))
        / small("dice_focal", gamma=gamma, lambda_dice=0)(easy, target)
        for gamma in (0, 2.0)
    }
    assert ratio[2.0] == pytest.approx(ratio[0].item() * (0.8 / 0.1) ** 2, rel=1e-3)


def test_cldice_minds_a_broken_tube_more_than_a_thin_one() -> None:
    tube = torch.zeros(1, 9, 40, dtype=torch.long)
    tube[:, 3:6] = 1
    target = F.one_hot(tube, 2).movedim(-1, 1).float()
    broken, thin = tube.clone(), tube.clone()
    broken[:, :, 12:20] = 0
    thin[:, 3, 8:32] = 0
    assert (tube - broken).sum() == (tube - thin).sum() == 24
    value = {
        (alpha, kind): small("soft_cldice", alpha=alpha)(
            logits_for(F.one_hot(labels, 2).movedim(-1, 1).float()), target
        ).item()
        for alpha in (0.0, 1.0)
        for kind, labels in (("broken", broken), ("thin", thin))
    }
    assert value[0.0, "broken"] == pytest.approx(value[0.0, "thin"], abs=1e-5), "Dice sees no difference"
    assert value[1.0, "broken"] > 2 * value[1.0, "thin"]
    mixed = small("soft_cldice", alpha=0.25)(logits_for(F.one_hot(broken, 2).movedim(-1, 1).float()), target).item()
    assert mixed == pytest.approx(0.75 * value[0.0, "broken"] + 0.25 * value[1.0, "broken"], abs=1e-6)


def test_hausdorff_minds_far_errors_more_than_near_ones() -> None:
    labels = torch.zeros(1, 5, 30, dtype=torch.long)
    labels[:, 2, 2:6] = 1
    target = F.one_hot(labels, 2).movedim(-1, 1).float()
    values = []
    for column in (7, 15, 27):
        found = labels.clone()
        found[:, 2, column] = 1
        logits = logits_for(F.one_hot(found, 2).movedim(-1, 1).float())
        values.append(small("hausdorff_dt", lambda_hausdorff=1, lambda_dice=0, lambda_ce=0)(logits, target).item())
    assert values == sorted(values)
    # one wrong voxel of 150; it is 1 from the border of the prediction and 10 from the target's
    assert values[1] == pytest.approx((1 + 10**2) / 150, rel=1e-4)
    mixed = small("hausdorff_dt", lambda_dice=3, lambda_hausdorff=2, lambda_ce=0)(logits, target).item()
    assert mixed == pytest.approx(2 * values[2] + 3 * (1 - 2 * 4 / 9), rel=1e-4)


@every_kind
def test_cross_entropy_beside_hausdorff(regions: bool) -> None:
    labels, logits = labels_of(2), noise(2, 2 if regions else 3, 14, 12)
    target = target_of(labels, regions=regions)
    value = make("hausdorff_dt", dims=2, regions=regions, lambda_hausdorff=0, lambda_dice=0)(logits, target)
    wanted = F.binary_cross_entropy_with_logits(logits, target) if regions else F.cross_entropy(logits, labels)
    torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("generalized_dice", {"w_type": "cubic"}, "w_type is square, simple or uniform, not 'cubic'"),
        ("generalized_dice", {"smooth": 0}, "smooth must be above 0, not 0"),
        ("dice_focal", {"gamma": 0.5}, "gamma must be 0 or at least 1, not 0.5"),
        ("dice_focal", {"lambda_focal": -1}, "lambda_dice and lambda_focal must not be negative"),
        ("tversky", {"alpha": -0.1}, "alpha and beta must not be negative"),
        ("tversky", {"smooth": 0}, "smooth must be above 0, not 0"),
        ("soft_cldice", {"alpha": 1.5}, "alpha must be in 0..1, not 1.5"),
        ("soft_cldice", {"num_iterations": -1}, "num_iterations must not be negative, not -1"),
        ("hausdorff_dt", {"alpha": 0}, "alpha must be above 0, not 0"),
        ("hausdorff_dt", {"lambda_ce": -1}, "lambda_hausdorff, lambda_dice and lambda_ce must not be negative"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        make(name, **settings)
    assert str(caught.value) == f"loss_fn: {message}."
