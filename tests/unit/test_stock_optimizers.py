"""The optimiser of nnplug_stock is that of nnU-Net's trainer class, and says what to install where it is missing."""

from __future__ import annotations

import sys

import pytest
from nnplug import NnplugError
from nnplug_stock.optimizers import adan
from support.stock_trainers import made_up_dataset_json, made_up_plans, make_trainer, stock_class
from torch import nn


def test_adan_is_that_of_the_stock_class(tmp_path, monkeypatch):
    pytest.importorskip("adan_pytorch")
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    trainer = make_trainer(stock_class("nnUNetTrainerAdan"), made_up_plans(), made_up_dataset_json())
    trainer.network = nn.Linear(2, 2)
    theirs, _ = trainer.configure_optimizers()
    ours = adan(trainer.network.parameters(), lr=trainer.initial_lr, weight_decay=trainer.weight_decay)
    assert type(ours) is type(theirs)
    ignored = ("params", "initial_lr")  # the second is what a schedule leaves there
    assert {k: v for k, v in ours.param_groups[0].items() if k not in ignored} == {
        k: v for k, v in theirs.param_groups[0].items() if k not in ignored
    }


def test_without_the_package_adan_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "adan_pytorch", None)
    with pytest.raises(NnplugError) as error:
        adan(nn.Linear(2, 2).parameters(), lr=0.01, weight_decay=0)
    assert str(error.value) == (
        "The optimizer adan needs the package adan-pytorch. Install it with: pip install 'nnplug[adan]'"
    )
