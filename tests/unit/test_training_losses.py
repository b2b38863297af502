"""What of an author's code is the loss itself, and what makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nnplug import Component, LossContext, NnplugError
from nnplug.training.losses import make_loss

CONTEXT = LossContext(num_classes=2, spatial_dims=2, ignore_label=None, has_regions=False, batch_dice=False)


def made(context: LossContext, alpha: float, beta: float) -> Callable[..., Any]:
    return lambda _output, _target: alpha * context.num_classes + beta


def weighted(output: torch.Tensor, target: torch.Tensor, weight: float) -> float:
    return weight


def of_a_context(output: torch.Tensor, target: torch.Tensor, context: LossContext) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("component", "value"), [(Component(made, alpha=3, beta=1), 7), (Component(weighted, weight=5), 5)]
)
def test_required_settings(component: Component, value: float) -> None:
    loss, _ = make_loss(component, CONTEXT)
    assert loss(torch.zeros(1), torch.zeros(1)) == value


def test_a_loss_function_takes_no_context() -> None:
    with pytest.raises(NnplugError, match=r"of_a_context can not be made: .* missing 2 required .*'output' and"):
        make_loss(Component(of_a_context), CONTEXT)
