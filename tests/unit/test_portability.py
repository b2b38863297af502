"""Whether stock nnU-Net can predict with a model, told from the config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nnplug import TrainerConfig
from nnplug.composition.portability import needed_packages, stock_prediction_obstacle
from nnplug.composition.resolved import ResolvedConfig
from nnplug.discovery.registry import Registry


def resolved(**fields: object) -> ResolvedConfig:
    return Registry([]).resolve(TrainerConfig(name="mine", **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_epochs": 5, "loss_fn": lambda *_: 0.0, "sampler": "acme.x:Y"},
        {"network_builder": "acme.net:Net"},
        {"network_builder": "monai.networks.nets:UNet"},
        {"extends": "nnUNetTrainerBN"},
        {"extends": "nnUNet_Primus_M_Trainer"},
        {"plans": {"resampling_fn_probabilities": "resample_torch_fornnunet"}},
    ],
)
def test_portable(fields: dict[str, object]) -> None:
    assert stock_prediction_obstacle(resolved(**fields)) is None


def test_a_builder_in_a_module_that_no_package_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_a_script.py").write_text("def build(**kwargs): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = stock_prediction_obstacle(resolved(network_builder="beside_a_script:build"))
    assert reason is not None
    assert "belongs to no installed package; nnU-Net finds it only through PYTHONPATH" in reason


def test_a_builder_that_can_not_be_imported() -> None:
    reason = stock_prediction_obstacle(resolved(network_builder=lambda **_: None))
    assert reason is not None
    assert reason.startswith(
        f"network_builder: '{__name__}:test_a_builder_that_can_not_be_imported.<locals>.<lambda>' can"
    )
    assert reason.endswith("it is a lambda. Write a function with def in a module.")


def test_a_third_party_class_that_builds_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class Own(nnUNetTrainer):\n    @staticmethod\n    def build_network_architecture():\n        pass\n"
        "class Derived(Own):\n    pass\n"
        "class Longer(nnUNetTrainer):\n    def __init__(self):\n        self.num_epochs = 5\n"
    )
    (tmp_path / f"own_{os.getpid()}.py").write_text(source)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert stock_prediction_obstacle(resolved(extends="Longer")) is None
    assert stock_prediction_obstacle(resolved(extends="Derived")) == (
        "Own makes the network itself (base_trainer is nnUNet_extTrainer:Derived), and stock nnU-Net finds that class "
        "only in a folder of nnUNet_extTrainer"
    )
    assert stock_prediction_obstacle(resolved(extends="Derived", network_builder="acme.net:Net")) is None


def test_resampling_of_a_plugin() -> None:
    assert stock_prediction_obstacle(resolved(plans={"resampling_fn_probabilities": "acme_resample"})) == (
        "plans.resampling_fn_probabilities: nnU-Net looks for 'acme_resample' in its own package only, and it is "
        "not there"
    )


def test_the_packages_that_prediction_needs() -> None:
    assert needed_packages(resolved()) == []
    assert needed_packages(resolved(network_builder="acme.net:Net")) == ["acme"]
    assert (
        needed_packages(resolved(network_builder="dynamic_network_architectures.architectures.unet:PlainConvUNet"))
        == []
    )
