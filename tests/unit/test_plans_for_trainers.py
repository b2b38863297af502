"""``nnplug plans derive --for-trainer``: patch and batch that the network of a trainer fits with."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nnplug import Component, TrainerConfig
from nnplug.cli import main
from nnplug.networks.costs import costs_of
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.datasets import DatasetForTests, environment
from support.plugin_packages import PluginSite
from support.preprocessed import read_json
from support.small_trainings import train_here

NETWORKS = """
import torch
from torch import nn

class Hungry(nn.Module):
    # keeps many large maps
    def __init__(self, input_channels, num_classes, deep_supervision, num_maps=20, **_):
        super().__init__()
        layers = [nn.Conv3d(input_channels, 48, 3, padding=1)]
        for _ in range(num_maps):
            layers += [nn.Conv3d(48, 48, 3, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers, nn.Conv3d(48, num_classes, 1))

    def forward(self, x):
        return self.layers(x)

class Light(Hungry):
    pass

class Choosy(Hungry):
    def forward(self, x):
        if any(side % 16 for side in x.shape[2:]):
            raise ValueError("needs multiples of 16")
        return super().forward(x)

class Looking(Hungry):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)
"""
TRAINERS = """
@nnplug.hookimpl
def register_trainers(register):
    register(TrainerConfig(name="stock"))
    for name, num_maps in (("Hungry", 20), ("Choosy", 8), ("Looking", 0), ("Light", 1)):
        network = Component(f"acme_nets.net:{name}", num_maps=num_maps)
        register(TrainerConfig(name=name.lower(), network_builder=network))
"""


@pytest.fixture
def planned(hippocampus_prepared: DatasetForTests, tmp_path: Path, installed: PluginSite) -> Iterator[Path]:
    """The plans of the hippocampus, to be changed, and a plugin; nnU-Net's variables are set."""
    installed.add("acme-nets", code=TRAINERS, files={"net.py": NETWORKS})
    folder = tmp_path / "preprocessed" / hippocampus_prepared.name
    folder.mkdir(parents=True)
    for path in hippocampus_prepared.preprocessed_folder.glob("*.json"):
        shutil.copy(path, folder)
    with environment(**{**hippocampus_prepared.env, "nnUNet_preprocessed": str(folder.parent)}):
        yield folder


def derive(capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    command = ["plans", "derive", "-d", "4", "-c", "3d_fullres", "--name", name, "--json"]
    assert main([*command, *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    command = ["plans", "derive", "-d", "4", "-c", "3d_fullres", "--name", "a"]
    assert main([*command, *map(str, arguments)]) == 2
    return capsys.readouterr().err.removeprefix("nnplug: error: ").rstrip("\n")


def test_nnunets_own_network_gets_nnunets_own_patch(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = derive(capsys, "plain", "-gpu_memory_target", 0.1)
    found = derive(capsys, "for_plain", "--for-trainer", "stock", "-gpu_memory_target", 0.1)
    assert found["changes"] == expected["changes"]
    assert found["trainer_memory_gb"] == expected["estimated_memory_gb"]


def test_a_network_that_needs_more_gets_less(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = derive(capsys, "plain", "-gpu_memory_target", 0.25)
    found = derive(capsys, "narrow", "--for-trainer", "hungry", "-gpu_memory_target", 0.25)
    patch = found["changes"]["patch_size"]
    assert math.prod(patch) < 0.7 * math.prod(plain["changes"]["patch_size"])
    assert found["estimated_memory_gb"] < found["trainer_memory_gb"] <= 0.25
    assert found["next"][-1] == "nnplug train Dataset004_Hippocampus narrow 0 -tr hungry"

    from acme_nets.net import Hungry

    plans = read_json(planned / "nnUNetPlans.json")["configurations"]
    architecture = {**plans["3d_fullres"], **plans["narrow"]}["architecture"]
    names = (architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"])
    with torch.device("meta"):
        networks = (Hungry(1, 3, False), get_network_from_plans(*names, 1, 3, allow_init=False, deep_supervision=True))
    ours, plain_bytes = (costs_of(network.train(), (2, 1, *patch)).peak_bytes for network in networks)
    expected = found["estimated_memory_gb"] * ours / plain_bytes
    assert found["trainer_memory_gb"] == pytest.approx(expected, rel=0.08)  # both are told with two digits


def test_a_network_that_takes_certain_sizes(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = derive(capsys, "a", "--for-trainer", "choosy", "-gpu_memory_target", 8)
    assert found["changes"]["patch_size"] == [48, 64, 48]
    less = derive(capsys, "b", "--for-trainer", "choosy", "-gpu_memory_target", 0.15)
    assert all(side % 16 == 0 for side in less["changes"]["patch_size"])
    assert math.prod(less["changes"]["patch_size"]) < 48 * 64 * 48
    assert less["trainer_memory_gb"] <= 0.15


def test_batch_and_patch_can_be_set(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = derive(capsys, "a", "--for-trainer", "hungry", "-gpu_memory_target", 0.25, "--set", "batch_size=4")
    assert more["changes"]["batch_size"] == 4
    assert more["trainer_memory_gb"] <= 0.25
    fixed = derive(capsys, "b", "--for-trainer", "hungry+batch_size=3", "--set", "patch_size=32,32,32")
    assert fixed["changes"]["patch_size"] == [32, 32, 32]
    assert fixed["changes"]["batch_size"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["hungry", "-gpu_memory_target", "0.001"],
            "No patch was found with which the network of 'hungry' fits 0.001 GB in a batch of 2. Give more with "
            "-gpu_memory_target, or patch and batch with --set.",
        ),
        (
            ["choosy", "-gpu_memory_target", "0.02"],
            "No patch was found with which the network of 'choosy' fits 0.02 GB in a batch of 2. The smallest that was "
            "tried, 16,32,16, needs 0.022 GB. Give more with -gpu_memory_target, or patch and batch with --set.",
        ),
        (
            ["hungry+patch_size=8x8x8", "--set", "patch_size=16,16,16"],
            "'hungry+patch_size=8x8x8' sets patch_size itself, so --set patch_size would change nothing.",
        ),
        (
            ["hungry", "--keep-network"],
            "--for-trainer plans the network for its patch, --keep-network keeps it. Give one of them.",
        ),
        (
            ["choosy", "--set", "patch_size=40,40,40"],
            "The network of 'choosy' does not take patch_size=40,40,40. A size that fits: 48,48,48.",
        ),
        (
            ["looking", "--set", "patch_size=16,16,16"],
            "The memory of 'looking' can not be counted without computing (RuntimeError). Give its patch and batch "
            "with --set, without --for-trainer.",
        ),
    ],
)
def test_what_can_not_work(
    planned: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert error_of(capsys, "--for-trainer", *arguments) == message


def test_too_little_memory_for_a_patch_that_is_set(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = error_of(capsys, "--for-trainer", "hungry", "-gpu_memory_target", 1, "--set", "patch_size=128,64,64")
    assert found.startswith("The network of 'hungry' is estimated to need ")
    assert found.endswith(
        " GB for a batch of 2 patches of 128,64,64, more than -gpu_memory_target 1. Give more memory, or a smaller "
        "patch or batch."
    )


def test_what_was_derived_is_trained(
    tiny_prepared: DatasetForTests, planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny_prepared.private_copy(tmp_path / "private")
    with dataset.activated():
        command = ["plans", "derive", "-d", "901", "-c", "3d_fullres", "--name", "3d_small"]
        assert main([*command, "--for-trainer", "light", "-gpu_memory_target", "0.008"]) == 0
    patch = read_json(dataset.preprocessed_folder / "nnUNetPlans.json")["configurations"]["3d_small"]["patch_size"]
    assert patch < [24, 28, 24]
    short = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "mirror_axes": ()}
    config = TrainerConfig(name="short", network_builder=Component("acme_nets.net:Light", num_maps=1), **short)
    (result,) = train_here(dataset, config, configuration="3d_small")
    assert result["status"] == "completed"
    assert dataset.model_folder("short", "3d_small").is_dir()
