"""Mixed precision is off where a trainer or ``nnUNet_use_amp`` says so, and for that training only."""

from __future__ import annotations

import json
from typing import Any

import nnplug
import pytest
import torch
from nnplug import TrainerConfig
from nnplug.training.trainer import build_trainer_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.datasets import DatasetForTests


class Fails(Exception):
    pass


class SaysPrecision(nnUNetTrainer):
    """Notes what ``autocast("cuda")`` would compute in, where nnU-Net's trainer would call it."""

    def run_training(self) -> None:
        self.found = [torch.get_autocast_dtype("cuda")]

    def perform_actual_validation(self, *_: bool) -> None:
        self.found.append(torch.get_autocast_dtype("cuda"))
        raise Fails


@pytest.mark.parametrize(
    ("amp", "variable", "is_off"),
    [(False, None, True), (None, "0", True), (None, "1", False), (None, None, False), (True, "0", False)],
)
def test_amp(tiny_dataset: DatasetForTests, amp: bool | None, variable: str | None, is_off: bool) -> None:
    before = torch.get_autocast_dtype("cuda")
    resolved = nnplug.resolve(TrainerConfig(name="t", base_trainer=SaysPrecision, amp=amp))
    with tiny_dataset.activated(**({} if variable is None else {"nnUNet_use_amp": variable})):
        trainer = make(resolved, tiny_dataset, "cuda")
        trainer.run_training()
        with pytest.raises(Fails):
            trainer.perform_actual_validation()

    assert before == torch.float16
    assert trainer.found == [torch.float32 if is_off else torch.float16] * 2
    assert (trainer.grad_scaler is None) == is_off
    assert torch.get_autocast_dtype("cuda") == before


def make(resolved: Any, dataset: DatasetForTests, device: str) -> Any:
    plans, dataset_json = (
        json.loads((dataset.preprocessed_folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
    )
    arguments = ({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device(device))
    return build_trainer_class(resolved)(*arguments)


@pytest.mark.parametrize(("wanted", "variable"), [(True, "0"), (False, "1"), (None, "1"), (None, "0")])
def test_compile(
    tiny_dataset: DatasetForTests, monkeypatch: pytest.MonkeyPatch, wanted: bool | None, variable: str
) -> None:
    resolved = nnplug.resolve(TrainerConfig(name="t", compile=wanted))
    with tiny_dataset.activated(nnUNet_compile=variable):
        trainer = make(resolved, tiny_dataset, "cuda")
        assert trainer._do_i_compile() == (wanted if wanted is not None else variable == "1")
        assert not make(resolved, tiny_dataset, "cpu")._do_i_compile()  # nnU-Net compiles on CUDA only
