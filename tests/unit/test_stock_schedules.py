"""The schedules of nnplug_stock give the learning rates of nnU-Net's trainer classes, epoch by epoch."""

from __future__ import annotations

import pytest
import torch
from nnplug import NnplugError
from nnplug_stock.schedules import cosine_lr, poly_lr, warmup_lr
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer, stock_class
from torch import nn

STOCK = {poly_lr: "nnUNetTrainer", cosine_lr: "nnUNetTrainerCosAnneal", warmup_lr: "nnUNetTrainer_warmup"}


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=lr
    )


def rates(make, initial_lr: float, num_epochs: int, **settings) -> list[float]:
    optimizer = sgd(initial_lr)
    schedule = make(optimizer, initial_lr=initial_lr, num_epochs=num_epochs, **settings)
    found = []
    for epoch in range(num_epochs):
        schedule.step(epoch)
        of_groups = [group["lr"] for group in optimizer.param_groups]
        assert of_groups[0] == of_groups[1]
        found.append(of_groups[0])
    return found


@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning", "ignore:.*epoch parameter.*:UserWarning")
@pytest.mark.parametrize(("num_epochs", "initial_lr"), [(1000, 1e-2), (130, 3e-4), (20, 1e-2)])
@pytest.mark.parametrize("make", STOCK)
def test_rates_are_those_of_the_stock_class(make, num_epochs, initial_lr, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    trainer = make_trainer(stock_class(STOCK[make]), made_up_plans(), made_up_dataset_json())
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *_, **__: None)
    trainer.network, trainer.num_epochs, trainer.initial_lr = nn.Linear(1, 1), num_epochs, initial_lr
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    theirs = []
    for trainer.current_epoch in range(num_epochs):
        trainer.on_train_epoch_start()
        theirs.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates(make, initial_lr, num_epochs) == pytest.approx(theirs, rel=1e-12)
    assert len(set(theirs)) == num_epochs or make is warmup_lr


def test_the_first_rate_is_set_before_the_first_epoch():
    optimizer = sgd(1.0)
    warmup_lr(optimizer, initial_lr=1.0, num_epochs=100)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02]


def test_a_resumed_schedule_goes_on_at_its_epoch():
    whole = rates(warmup_lr, 0.01, 200)
    optimizer = sgd(0.5)
    schedule = warmup_lr(optimizer, initial_lr=0.01, num_epochs=200)
    schedule.step(120)
    assert optimizer.param_groups[0]["lr"] == whole[120]
    schedule.step(121)
    assert optimizer.param_groups[0]["lr"] == whole[121]


def test_settings():
    assert rates(poly_lr, 1.0, 4, exponent=1) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(cosine_lr, 1.0, 2, final_lr=0.5) == pytest.approx([1, 0.75])
    assert rates(warmup_lr, 1.0, 6, warmup_epochs=2, exponent=1) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (poly_lr, {"exponent": 0}, "lr_scheduler.exponent: expected a number > 0, got 0."),
        (warmup_lr, {"exponent": -1}, "lr_scheduler.exponent: expected a number > 0, got -1."),
        (warmup_lr, {"warmup_epochs": 0}, "lr_scheduler.warmup_epochs: expected an integer >= 1, got 0."),
        (warmup_lr, {"warmup_epochs": 2.5}, "lr_scheduler.warmup_epochs: expected an integer >= 1, got 2.5."),
        (cosine_lr, {"final_lr": 2}, "lr_scheduler.final_lr: expected a number from 0 to initial_lr (0.01), got 2."),
        (
            cosine_lr,
            {"final_lr": "x"},
            "lr_scheduler.final_lr: expected a number from 0 to initial_lr (0.01), got 'x'.",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(make, settings, message):
    with pytest.raises(NnplugError) as error:
        make(sgd(0.01), initial_lr=0.01, num_epochs=100, **settings)
    assert str(error.value) == message
