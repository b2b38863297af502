"""Optimisers that need more than an import string."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nnplug import NnplugError
from torch.optim import Optimizer


def adan(
    params: Iterable[Any],
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float, float] = (0.02, 0.08, 0.01),
    eps: float = 1e-8,
) -> Optimizer:
    """Adan of the optional package adan-pytorch.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        weight_decay: weight decay.
        betas: as adan-pytorch counts them: the share of the new value, 1 - beta of the paper.
        eps: added to the denominator.

    Raises:
        NnplugError: adan-pytorch is not installed.

    Source:
        nnUNetTrainerAdan; Xie et al. 2022, arXiv:2208.06677.
    """
    try:
        from adan_pytorch import Adan
    except ModuleNotFoundError as error:
        if error.name != "adan_pytorch":
            raise
        raise NnplugError(
            "The optimizer adan needs the package adan-pytorch. Install it with: pip install 'nnplug[adan]'"
        ) from None
    return Adan(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
