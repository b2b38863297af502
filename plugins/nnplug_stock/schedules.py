"""nnU-Net's learning rate schedules as factories for the field ``lr_scheduler``.

A schedule sets the rate of every parameter group when nnU-Net calls ``step(epoch)`` before each epoch (counted from 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer

from nnplug_stock.settings import check_positive, check_setting


class EpochSchedule:
    """A learning rate that is a function of the epoch.

    nnU-Net resumes by building the schedule anew and asking for a later epoch, so it has no state. torch's own
    schedulers have deprecated ``step(epoch)``.

    Args:
        optimizer: all its parameter groups get the same rate.
        rate: from the epoch, counted from 0, to the learning rate.
    """

    def __init__(self, optimizer: Optimizer, rate: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.rate = rate
        self.step(0)

    def step(self, epoch: int) -> None:
        """Set the rate of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(epoch)


def poly_lr(optimizer: Optimizer, initial_lr: float, num_epochs: int, *, exponent: float = 0.9) -> PolyLRScheduler:
    """nnU-Net's default: ``initial_lr * (1 - epoch / num_epochs) ** exponent``.

    Args:
        optimizer: the optimiser.
        initial_lr: rate of the first epoch.
        num_epochs: length of the training.
        exponent: above 0.
    """
    check_positive("lr_scheduler.exponent", exponent)
    return PolyLRScheduler(optimizer, initial_lr, num_epochs, exponent=exponent)


def cosine_lr(optimizer: Optimizer, initial_lr: float, num_epochs: int, *, final_lr: float = 0.0) -> EpochSchedule:
    """Half a cosine from ``initial_lr`` to ``final_lr``, which the epoch after the last would have.

    Args:
        optimizer: the optimiser.
        initial_lr: rate of the first epoch.
        num_epochs: length of the training.
        final_lr: from 0 to ``initial_lr``.

    Source:
        nnUNetTrainerCosAnneal; Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """
    expected = f"a number from 0 to initial_lr ({initial_lr:g})"
    check_setting("lr_scheduler.final_lr", final_lr, expected, lambda rate: 0 <= rate <= initial_lr)
    return EpochSchedule(
        optimizer,
        lambda epoch: final_lr + (initial_lr - final_lr) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2,
    )


def warmup_lr(
    optimizer: Optimizer, initial_lr: float, num_epochs: int, *, warmup_epochs: int = 50, exponent: float = 0.9
) -> EpochSchedule:
    """A linear increase to ``initial_lr``, then :func:`poly_lr` over the epochs that are left.

    Args:
        optimizer: the optimiser.
        initial_lr: the highest rate, reached in the last epoch of the warm-up.
        num_epochs: length of the training, the warm-up included. A shorter one ends within the warm-up.
        warmup_epochs: length of the warm-up, 1 or more.
        exponent: above 0.

    Source:
        nnUNetTrainer_warmup and the Primus trainers.
    """
    check_positive("lr_scheduler.exponent", exponent)
    expected = "an integer >= 1"
    check_setting("lr_scheduler.warmup_epochs", warmup_epochs, expected, lambda epochs: epochs == int(epochs) >= 1)

    def rate(epoch: int) -> float:
        if epoch < warmup_epochs:
            return initial_lr / warmup_epochs * (1 + epoch)
        return initial_lr * (1 - (epoch - warmup_epochs) / (num_epochs - warmup_epochs)) ** exponent

    return EpochSchedule(optimizer, rate)
