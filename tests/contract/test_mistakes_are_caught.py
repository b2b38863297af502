"""The conformance suite finds the mistakes that authors make, each by the check that is named for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import broken_samples as broken
import pytest
import torch
from nnplug import Component, TrainerConfig
from nnplug.testing import check_trainer, run_checks
from torch import nn


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small wait for their threads longer than they compute
    yield
    torch.set_num_threads(num_threads)


def failures(plan: str, **fields: Any) -> dict[str, str]:
    """Message by name of the quick checks on a plan that fail."""
    checks = [check for name, check in check_trainer(TrainerConfig(name="t", **fields), quick=True) if plan in name]
    assert checks
    return {
        outcome.check.name.removesuffix(plan): outcome.message
        for outcome in run_checks(checks)
        if outcome.status == "failed"
    }


def network(cls: type[nn.Module]) -> dict[str, Any]:
    return {"network_builder": getattr(broken, f"build_{cls.__name__}")}


def test_what_has_no_mistake_passes() -> None:
    fields = {"network_builder": broken.build_good, "loss_fn": broken.GoodLoss, "sampler": broken.GoodSampler}
    for plan in ("[2d]", "[ignore_label]"):
        assert failures(plan, **fields) == {}


def test_a_network_that_looks_at_values_passes() -> None:
    assert failures("[2d]", **network(broken.LooksAtValues)) == {}
    assert failures("[reference_2d]", **network(broken.LooksAtValues)) == {}


@pytest.mark.parametrize(
    ("cls", "caught_by", "message"),
    [
        (broken.UnusedParameter, "gradients", "none for 2, the first: forgotten.weight"),
        (broken.ListWithoutDeepSupervision, "builds", "returns a list without deep supervision"),
        (broken.FlagOnlyWhenBuilt, "builds", "still returns a list when its deep supervision is switched off"),
        (broken.HeadOnlyWithDeepSupervision, "builds", "other weights with deep supervision than without"),
        (broken.ListWhileTraining, "outputs", "in evaluation mode\nfound:    one tensor of 40x24"),
        (broken.Softmax, "raw_logits", "probabilities that sum to 1 over the classes: a softmax"),
        (broken.SoftmaxInEvaluation, "raw_logits", "output 0 in evaluation mode has probabilities that sum to 1"),
        (broken.SigmoidInEvaluation, "raw_logits", "output 0 in evaluation mode has no negative value"),
        (broken.SoftmaxOfASideOutput, "raw_logits", "output 1 in training mode has probabilities that sum to 1"),
        (broken.LogSoftmax, "raw_logits", "logarithms of probabilities that sum to 1 .*: a log-softmax"),
        (broken.Rectified, "raw_logits", "no negative value, .*: a sigmoid or ReLU"),
        (broken.NotANumber, "finite", "output 0 has .*% NaN or infinite values"),
        (broken.NotANumberInEvaluation, "finite", "finite outputs in evaluation mode"),
        (broken.GradientNotANumber, "finite", "NaN or infinite ones of head.weight"),
        (broken.OtherInitialState, "state_dict", "the same prediction from .*\nfound:    a largest difference of"),
        (broken.NeedsTwoSamples, "batch_of_one", "training mode on a batch of 1"),
        (broken.MixesSamples, "batch_of_one", "the same prediction from a sample alone and in a batch of 2"),
        (broken.FewerClassesOnOddSizes, "odd_sizes", "returns shape"),
        (broken.OneTypeOfNumber, "autocast", "dtype"),
        (broken.Locked, "pickle", "cannot pickle '_thread.lock'"),
        (broken.Locked, "deepcopy", "cannot pickle '_thread.lock'"),
        (broken.Unpicklable, "pickle", "lambda"),
        (broken.Circle, "freed", "refers to itself in a circle"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value[:10],
)
def test_network(cls: type[nn.Module], caught_by: str, message: str) -> None:
    found = failures("[2d]", **network(cls))
    assert re.search(message, found.get(caught_by, f"not caught, but {sorted(found)}"))
    assert "broken_samples.py" in found[caught_by]
    if caught_by == "builds":
        assert set(found) <= {"builds", "costs"}, "what needs a network that can not be built is not said to fail"


@pytest.mark.parametrize(
    ("cls", "check", "remark"),
    [
        (
            broken.PartlyDead,
            "gradients[2d]",
            r"\d+% of the parameters are frozen, the first: low_head.weight; the gradient is 0 in the first step for "
            r"\d+, the first: stem.0.weight",
        ),
        (broken.OtherHeadForPrediction, "first_output[2d]", "predicts otherwise than its first trained output: .*"),
        (broken.Good, "first_output[2d]", ""),
    ],
)
def test_what_may_be_meant_is_told(cls: type[nn.Module], check: str, remark: str) -> None:
    fields = network(cls) if cls is not broken.Good else {"network_builder": broken.build_good}
    [outcome] = run_checks([dict(check_trainer(TrainerConfig(name="t", **fields), quick=True))[check]])
    assert outcome.status == "passed"
    assert re.fullmatch(remark, outcome.message)


@pytest.mark.parametrize(
    ("loss_fn", "caught_by", "message"),
    [
        (broken.BlindToFalsePositives, "loss_false_positive", "false positives cost nothing"),
        (broken.BlindToFalsePositives, "loss_background_gradient", "other than 0 in 0% of these voxels"),
        (broken.BlindToFalsePositives, "loss_perfect_is_best", "'every object grown by two voxels'"),
        (broken.sees_the_first_sample, "loss_perfect_is_best", "'every object of sample 2 missed'"),
        (broken.sees_the_first_sample, "loss_false_positive", "added in a corner of the second sample"),
        (broken.leaves_out_the_border, "loss_false_positive", "added in a corner of the second sample"),
        (broken.leaves_out_the_border, "loss_background_gradient", "in a corner of the second sample"),
        (broken.rewards_mistakes, "loss_perfect_is_best", "'background everywhere'"),
        (broken.mean_over_no_voxel, "loss_finite", "no foreground at all, .*\nfound:    loss nan"),
        (broken.without_graph, "loss_finite", "a number without a graph"),
        (broken.logarithm_of_zero, "loss_autocast", "gradient not finite. Compute sums in float32"),
        (broken.OtherFromTheWorkers, "loss_target_transform", "the loss .* that it has without them"),
        (broken.LastOutputOnly, "loss_deep_supervision", "a gradient for the first output"),
    ],
)
def test_loss(loss_fn: Any, caught_by: str, message: str) -> None:
    found = failures("[2d]", loss_fn=Component(loss_fn))
    assert re.search(message, found.get(caught_by, f"not caught, but {sorted(found)}"))
    assert "broken_samples.py" in found[caught_by]


def test_ignored_voxels_that_count() -> None:
    found = failures("[ignore_label]", loss_fn=Component(broken.counts_ignored_voxels))
    assert re.search("the same loss for other logits in ignored voxels", found["loss_ignored_voxels"])


@pytest.mark.parametrize(
    ("sampler", "plan", "caught_by", "message"),
    [
        (broken.OutsideTheImage, "[3d]", "sampler_inside", "% of its voxels outside"),
        (broken.LabelsOfElsewhere, "[2d]", "sampler_inside", "the labels of the same voxels"),
        (broken.ForgetsForeground, "[2d]", "sampler_foreground", "foreground in 33% of the patches"),
        (broken.ForgetsForeground, "[3d]", "sampler_foreground", "foreground in 50% of the patches"),
        (broken.ForgetsSomeForeground, "[3d]", "sampler_foreground", "every patch that is drawn with force_fg=True"),
        (broken.ForgetsSomeForeground, "[2d]", "sampler_foreground", "every patch that is drawn with force_fg=True"),
        (broken.PrefersTheMiddle, "[2d]", "sampler_foreground", "every patch that is drawn with force_fg=True"),
        (broken.PrefersTheMiddle, "[3d]", "sampler_foreground", "every patch that is drawn with force_fg=True"),
        (broken.OneCase, "[2d]", "sampler_cases", "in all of 120 patches"),
        (broken.ForgetsAnnotations, "[ignore_label]", "sampler_annotated", "annotated voxels in every patch"),
        (broken.too_small_patches, "[2d]", "batches", r"images of shape \(3, 1, 40, 24\) for training"),
    ],
)
def test_sampler(sampler: Any, plan: str, caught_by: str, message: str) -> None:
    found = failures(plan, sampler=Component(sampler))
    assert re.search(message, found.get(caught_by, f"not caught, but {sorted(found)}"))
    assert "broken_samples.py" in found[caught_by]


@pytest.mark.parametrize(
    ("fields", "caught_by", "message"),
    [
        ({"training_transforms": broken.adds_a_label}, "batches", r"other values: \[7"),
        ({"lr_scheduler": broken.NegativeRates}, "learning_rates", "in epoch 501"),
        ({"lr_scheduler": broken.CountsItself}, "learning_rates", "also of a training that is resumed there"),
        ({"optimizer": broken.DoesNothing}, "trains", "weights that change in a step"),
    ],
)
def test_other_parts(fields: dict[str, Any], caught_by: str, message: str) -> None:
    found = failures("[2d]", **fields)
    assert re.search(message, found.get(caught_by, f"not caught, but {sorted(found)}"))
    assert "broken_samples.py" in found[caught_by]


@pytest.mark.full
@pytest.mark.parametrize(
    ("cls", "caught_by", "message"),
    [
        (broken.OtherWhenCompiled, "torch_compile", "the same outputs with torch.compile"),
        (broken.UnusedParameter, "ddp", "reduction"),
        (broken.OtherOnEveryRank, "ddp", "the same weights in both processes"),
        (broken.OtherInitialState, "stock_prediction", "% of the voxels differ"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value[:10],
)
def test_network_slowly(cls: type[nn.Module], caught_by: str, message: str) -> None:
    checks = dict(check_trainer(TrainerConfig(name="t", **network(cls))))
    [outcome] = run_checks([checks[f"{caught_by}[2d]"]])
    assert outcome.status == "failed"
    assert re.search(message, outcome.message)
