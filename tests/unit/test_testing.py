"""The kit of the conformance suite: which checks apply, exemptions, costs, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nnplug import Component, NnplugError, TrainerConfig, loss_traits
from nnplug.cli import main
from nnplug.testing import CheckExempt, CheckFailed, check_trainer, exempt, parametrize_with_checks, run_checks
from support.commands import clean_environment
from support.plugin_packages import PluginSite, trainers

LOSSES = """
import torch
from torch import nn
from torch.nn import functional

def good(output, target):
    return functional.cross_entropy(output, target[:, 0].long())

def bad(output, target):
    return -good(output, target)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def names(quick: bool = True, **fields: Any) -> list[str]:
    return [name for name, _ in check_trainer(TrainerConfig(name="t", **fields), quick=quick)]


def bare(names: list[str]) -> set[str]:
    return {name.partition("[")[0] for name in names}


def build(input_channels: int, num_classes: int, deep_supervision: bool) -> None:
    raise AssertionError((input_channels, num_classes, deep_supervision))


def loss(output: Any, target: Any) -> None:
    raise AssertionError((output, target))


@loss_traits(supports_ignore_label=True, supports_regions=True)
def loss_of_everything(output: Any, target: Any) -> None:
    raise AssertionError((output, target))


# --- which checks apply


def test_importing_the_kit_imports_neither_torch_nor_pytest() -> None:
    code = "import sys, nnplug.testing; print([m for m in ('torch', 'pytest', 'nnunetv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment())
    assert done.stdout.strip() == "[]", done.stderr


def test_a_number_of_epochs_needs_a_step_and_no_more() -> None:
    assert names(num_epochs=3) == ["batches[2d]", "trains[2d]"]
    assert names(quick=False, num_epochs=3) == names(num_epochs=3)


def test_a_network_is_checked_as_a_network() -> None:
    found = names(network_builder=build)
    assert "gradients[3d_anisotropic]" in found
    assert "builds[regions]" in found
    assert "costs[reference_3d]" in found
    assert not [name for name in found if name.startswith(("loss_", "sampler_"))]
    assert bare(names(quick=False, network_builder=build)) - bare(found) == {
        "torch_compile",
        "ddp",
        "stock_prediction",
        "step_time",
    }


def test_a_loss_is_checked_on_what_it_declares() -> None:
    found = names(loss_fn=Component(loss))
    assert not bare(found) & {"gradients", "costs", "outputs", "sampler_inside"}
    assert not [name for name in found if "regions" in name or "ignore" in name]
    more = set(names(loss_fn=Component(loss_of_everything))) - set(found)
    assert {"loss_finite[regions]", "loss_ignored_voxels[ignore_label]", "trains[regions_ignore_label]"} <= more
    assert bare(names(quick=False, loss_fn=Component(loss))) - bare(found) == {"ddp"}


def test_a_base_trainer_counts_for_what_its_class_decides() -> None:
    assert "loss_perfect_is_best" in bare([name for name, _ in check_trainer("nnUNetTrainerCELoss", quick=True)])


@pytest.mark.parametrize(
    ("fields", "left_out", "reason"),
    [
        ({"spatial_dims": (3,)}, {"plan[2d]"}, "works in 3D only (spatial_dims)"),
        ({"patch_size": (32, 32)}, {"plan[3d]", "plan[3d_anisotropic]"}, "works in 2D only (patch_size)"),
    ],
)
def test_dimensions_that_a_trainer_leaves_out(fields: dict[str, Any], left_out: set[str], reason: str) -> None:
    checks = dict(check_trainer(TrainerConfig(name="t", **fields)))
    assert {name for name in checks if name.startswith("plan")} == left_out
    for name in left_out:
        with pytest.raises(CheckExempt) as caught:
            checks[name]()
        assert str(caught.value) == reason
    plans = {name.partition("[")[2] for name in checks if not name.startswith("plan")}
    assert not plans & {name.partition("[")[2] for name in left_out}


def test_a_trainer_for_no_dimension() -> None:
    with pytest.raises(NnplugError, match="'t' works in no dimension: spatial_dims and patch_size exclude each other"):
        names(spatial_dims=(3,), patch_size=(16, 16))


# --- exemptions


def test_an_exempt_check_is_not_run_and_its_reason_is_shown() -> None:
    @exempt("loss_finite", reason="the paper's loss is undefined without objects")
    @exempt("loss_autocast[2d]", reason="needs float32")
    def undefined(output: Any, target: Any) -> None:
        raise AssertionError((output, target))

    checks = dict(check_trainer(TrainerConfig(name="t", loss_fn=Component(undefined)), quick=True))
    exempt_names = {name for name, check in checks.items() if check.exemption}
    assert exempt_names == {
        "loss_finite[2d]",
        "loss_finite[3d]",
        "loss_finite[3d_anisotropic]",
        "loss_autocast[2d]",
    }
    [outcome] = run_checks([checks["loss_finite[3d]"]])
    assert outcome.status == "exempt"
    assert outcome.message.startswith("the paper's loss is undefined without objects (loss_fn ")


def test_exemptions_are_inherited_and_not_shared() -> None:
    class Base:
        pass

    class Derived(exempt("freed", reason="a")(Base)):
        pass

    exempt("pickle", reason="b")(Derived)
    assert Derived.nnplug_exemptions == {"freed": "a", "pickle": "b"}
    assert Base.nnplug_exemptions == {"freed": "a"}


def test_an_exemption_needs_a_reason_and_a_check() -> None:
    with pytest.raises(NnplugError, match=r"exempt\('freed'\): say why. The reason is shown to those who use"):
        exempt("freed", reason=" ")

    @exempt("loss_finit", reason="a")
    def misspelt(output: Any, target: Any) -> None:
        raise AssertionError((output, target))

    with pytest.raises(
        NnplugError, match=r"exempt from 'loss_finit', which is no check \(did you mean loss_finite\?\)"
    ):
        names(loss_fn=Component(misspelt))

    @exempt("loss_finite[2D]", reason="a")
    def of_no_plan(output: Any, target: Any) -> None:
        raise AssertionError((output, target))

    with pytest.raises(
        NnplugError, match=r"exempt from 'loss_finite\[2D\]', which names no plan of the checks. The plans: 2d, 3d,"
    ):
        names(loss_fn=Component(of_no_plan))


# --- running


def test_the_text_of_a_failure() -> None:
    assert str(CheckFailed("this", "that")) == "expected: this\nfound:    that"
    assert str(CheckFailed("this", "that", "net.py:3")).splitlines()[2] == "look at:  net.py:3"


def test_the_users_variables_are_kept_and_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nnplug.testing.made_up_data import activated

    monkeypatch.setenv("nnUNet_results", "mine")
    monkeypatch.setenv("nnUNet_keep_files_open", "1")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with activated(tmp_path):
        assert os.environ["nnUNet_results"] == str(tmp_path)
        assert "nnUNet_keep_files_open" not in os.environ
    assert os.environ["nnUNet_results"] == "mine"
    assert os.environ["nnUNet_keep_files_open"] == "1"
    assert "nnUNet_raw" not in os.environ


def test_random_numbers_of_the_caller_go_on_as_if_nothing_had_happened() -> None:
    import numpy as np
    import torch

    def draw() -> tuple[float, float]:
        return torch.rand(()).item(), np.random.rand()

    def seed() -> None:
        torch.manual_seed(3)
        np.random.seed(3)

    seed()
    expected = [draw(), draw()]
    seed()
    before = draw()
    [*_, outcome] = run_checks(check for _, check in check_trainer("num_epochs=3", quick=True))
    assert outcome.status == "passed"
    assert [before, draw()] == expected


def test_costs_are_counted_without_computing() -> None:
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnplug.networks.costs import costs_of

    def unet() -> torch.nn.Module:
        return PlainConvUNet(
            1, 2, (8, 16), torch.nn.Conv2d, 3, (1, 2), 2, 3, 2, conv_bias=True, deep_supervision=True
        ).train()

    with torch.device("meta"):
        network = unet()
    costs = costs_of(network, (2, 1, 32, 32))
    assert costs.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    # parameters and their gradients at least, and the eight channels of the first convolution
    assert costs.peak_bytes > 4 * (2 * costs.num_parameters + 2 * 8 * 32 * 32)
    assert abs(costs_of(unet(), (2, 1, 32, 32)).peak_bytes / costs.peak_bytes - 1) < 0.02
    assert costs_of(network, (4, 1, 32, 32)).multiply_adds == 2 * costs.multiply_adds


# --- pytest, the command


def test_parameters_for_pytest() -> None:
    mark = parametrize_with_checks(TrainerConfig(name="t", loss_fn=Component(loss)), "num_epochs=3").mark
    assert mark.args[0] == "check"
    found = {parameter.id: [mark.name for mark in parameter.marks] for parameter in mark.args[1]}
    assert found["t-loss_finite[2d]"] == []
    assert found["t-ddp[2d]"] == ["nnplug_slow"]
    assert found["num_epochs=3-trains[2d]"] == []


def test_code_that_can_not_be_imported_fails_its_checks(site: PluginSite) -> None:
    site.add("acme-broken", files={"network.py": "raise ValueError('no licence for this computer')"})
    config = TrainerConfig(name="t", network_builder="acme_broken.network:build")
    checks = dict(check_trainer(config, quick=True))
    [outcome] = run_checks([checks["builds[2d]"]])
    assert outcome.status == "failed"
    assert "no licence for this computer" in outcome.message


@pytest.fixture
def losses(installed: PluginSite) -> None:
    code = trainers("name='good', loss_fn='acme_losses.losses:good'", "name='bad', loss_fn='acme_losses.losses:bad'")
    installed.add("acme-losses", code=code, files={"losses.py": LOSSES})


@pytest.mark.usefixtures("losses")
def test_the_command_shows_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good", "--quick"]) == 0
    shown = capsys.readouterr()
    lines = [line.rstrip() for line in shown.out.splitlines()]
    assert lines[0] == "good"
    assert lines[1].split() == ["check", "2d", "3d", "3d_anisotropic", "four_channels"]
    assert ["loss_finite", "ok", "ok", "ok"] in [line.split() for line in lines]
    assert ["loss_autocast", "ok"] in [line.split() for line in lines]
    assert lines[-2].split() == ["trainer", "passed", "failed", "exempt", "skipped", "seconds"]
    assert lines[-1].split()[:5] == ["good", "24", "-", "-", "-"]
    running = shown.err.splitlines()
    assert len(running) == 24
    assert running[-1].startswith("good: ")
    assert running[-1].endswith(" (24 of 24)")


@pytest.mark.usefixtures("losses")
def test_the_command_fails_with_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "bad", "good", "--quick"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in err.splitlines()] == ["bad", "good"]
    assert "bad: loss_perfect_is_best[2d]: failed\n  expected: a higher loss for 'background everywhere'" in out
    assert "acme_losses/losses.py:9" in out
    assert "good: " not in out
    assert main(["check", "bad", "good", "--quick", "--json"]) == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert (bad["trainer"], bad["passed"]) == ("bad", False)
    assert (good["trainer"], good["passed"], good["costs"]) == ("good", True, [])
    failed = {check["name"] for check in bad["checks"] if check["status"] == "failed"}
    assert {"loss_perfect_is_best[2d]", "loss_false_positive[3d]"} <= failed
    assert all(check["status"] == "passed" and check["seconds"] >= 0 for check in good["checks"])


@pytest.mark.usefixtures("losses")
def test_one_trainer_that_can_not_be_checked_keeps_no_other_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "num_epochs=1", "patch_size=16x16+spatial_dims=3", "--quick", "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["trainer"], good["passed"]) == ("num_epochs=1", True)
    assert not bad["passed"]
    assert "works in no dimension: spatial_dims and patch_size exclude each other" in bad["error"]


@pytest.mark.full
def test_a_sampler_is_checked_on_large_patches() -> None:
    """A float32 does not hold the index of every voxel of these images."""
    checks = dict(check_trainer("oversample_foreground_percent=0.5+patch_size=308x308", quick=True))
    checks["sampler_inside[2d]"]()


def test_a_network_is_checked_in_both_dimensions() -> None:
    assert {"autocast[2d]", "trains[2d]"} <= set(names(network_builder=build))
    assert {"autocast[3d]", "trains[3d]", "ddp[3d]"} <= set(names(quick=False, network_builder=build))


@pytest.mark.usefixtures("losses")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which trainer? Give names as after -tr, or --all for every registered one."),
        (["good", "--all"], "Which trainer? Give names as after -tr, or --all for every registered one."),
        (["goood"], "Unknown trainer 'goood'. Did you mean 'good'?"),
    ],
)
def test_mistakes_of_the_user(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == 2
    assert f"nnplug: error: {message}" in capsys.readouterr().err
