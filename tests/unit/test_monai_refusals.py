"""What MONAI's networks refuse: patch sizes, settings, plans."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from monai.networks import nets
from nnplug import NnplugError
from nnplug_monai.patch_rule import PatchRule
from support.monai_networks import (
    SUPERVISED,
    TINY,
    build,
    build_tiny,
    one_thread,  # noqa: F401
    plan_of,
)


def raises_value_error(message: str) -> Any:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


SIZES_2D = [(8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (32, 64), (24, 24), (48, 16), (17, 32), (15, 64), (20, 20)]


@pytest.mark.parametrize("name", [name for name in TINY if name != "unetr"])
def test_patch_rule_is_exact(name: str) -> None:
    """What the rule refuses fails in MONAI's own code, and what it lets through runs."""
    taken = []
    with torch.device("meta"), torch.no_grad():
        network = build_tiny(name, (64, 64))
        rule = network.patch_rule
        network._forward_pre_hooks.clear()
        for size in SIZES_2D:
            try:  # nnU-Net predicts one patch at a time
                outputs = network.train()(torch.empty(2, 1, *size)), network.eval()(torch.empty(1, 1, *size))
                runs = all(output.shape[2:] == size for output in outputs)
            except (RuntimeError, ValueError):
                runs = False
            try:
                rule.check(size)
            except ValueError:
                assert not runs, f"{size} runs and is refused"
            else:
                assert runs, f"{size} is let through and fails"
                taken.append(size)
    assert taken
    assert len(taken) < len(SIZES_2D)


def test_unetr_patch_rule_is_exact() -> None:
    for size in SIZES_2D:
        with torch.device("meta"), torch.no_grad():
            theirs = nets.UNETR(1, 3, size, 4, 12, 12, 2, spatial_dims=2) if min(size) >= 16 else None
            try:
                runs = theirs is not None and theirs(torch.empty(2, 1, *size)).shape == (2, 3, *size)
            except (RuntimeError, ValueError):
                runs = False
            try:
                build_tiny("unetr", size)(torch.empty(2, 1, *size))
                assert runs, size
            except ValueError:
                assert not runs, size


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("segresnet", (40, 56, 44), "SegResNet needs sides that are multiples of 8"),
        ("swinunetr", (40, 56, 40), "SwinUNETR needs sides that are multiples of 32"),
        ("swinunetr", (32, 32, 32), "SwinUNETR needs a side of at least 64: its coarsest level has one voxel"),
        ("vnet", (40, 56, 40), "VNet needs sides that are multiples of 16"),
        ("mednext", (40, 56, 40), "MedNeXt needs sides that are multiples of 16"),
        ("mednext", (16, 16), "MedNeXt needs a side of at least 32: its coarsest level has one voxel"),
        ("basicunetplusplus", (15, 64), "BasicUNetPlusPlus needs sides of at least 16"),
        ("dynunet", (20, 16), "DynUNet needs sides that are multiples of 8"),
    ],
)
def test_message_on_a_patch_that_does_not_fit(name: str, patch: tuple[int, ...], message: str) -> None:
    with torch.device("meta"), raises_value_error(message):
        build_tiny(name, patch)(torch.empty(2, 1, *patch))


def test_message_names_the_sides_of_an_anisotropic_plan() -> None:
    with raises_value_error("DynUNet needs sides that are multiples of 4x8x8"):
        build("dynunet", (6, 16, 16), plan=plan_of(3, "anisotropic"))(torch.zeros(2, 1, 6, 16, 16))


def test_unetr_refuses_a_patch_it_was_not_built_for() -> None:
    with raises_value_error("UNETR needs sides that are multiples of 16"):
        build_tiny("unetr", (40, 56, 40))
    network = build_tiny("unetr", (32, 16))
    with raises_value_error("UNETR was built for patches of 32x16 and takes no other size"):
        network(torch.zeros(1, 1, 16, 32))


def test_rule_is_readable_on_the_network() -> None:
    assert build_tiny("vnet", (32, 32)).patch_rule == PatchRule("VNet", (16, 16))


@pytest.mark.parametrize("name", [name for name in TINY if name not in SUPERVISED])
def test_deep_supervision_is_refused_where_there_is_one_output(name: str) -> None:
    with pytest.raises(NnplugError) as caught:
        build_tiny(name, (64, 64), deep_supervision=True)
    assert str(caught.value).startswith("has no deep supervision: ")
    assert str(caught.value).endswith(" has one output. Use enable_deep_supervision=false.")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "vnet",
            {"num_channels": 3},
            "can not have 3 input channels: VNet repeats the image to 16 and takes 1, 2, 4, 8 or 16.",
        ),
        (
            "unetr",
            {"patch_size": None},
            "needs to know the patch size, and the plan's arch_kwargs do not hold patch_size.",
        ),
        ("mednext", {"variant": "XL"}, "comes in the sizes S, B, M and L; network_builder.variant is 'XL'."),
        ("mednext", {"kernel_size": 4}, "needs an odd kernel; network_builder.kernel_size is 4."),
        (
            "mednext",
            {"blocks_up": [1, 1]},
            "needs as many levels up as down; network_builder.blocks_up has 2 entries, blocks_down 4.",
        ),
        ("segresnetds", {"dsdepth": 9}, "can have 1 to 3 outputs; network_builder.dsdepth is 9."),
        ("segresnetds", {"blocks_down": [1]}, "needs at least two levels: network_builder.blocks_down has one entry."),
        (
            "dynunet",
            {"deep_supr_num": 3},
            "has 4 stages and so 1 to 2 extra outputs; network_builder.deep_supr_num is 3.",
        ),
        ("dynunet", {"strides": [[1, 1], [2, 2]]}, "needs a plan with at least three stages; this one has 2."),
        (
            "dynunet",
            {"strides": [[2, 2], [2, 2], [2, 2], [2, 2]]},
            "works at full resolution first; the plan's first stride is [2, 2], not 1.",
        ),
        (
            "attentionunet",
            {"strides": [[2, 2], [2, 2], [2, 2], [2, 2]]},
            "works at full resolution first; the plan's first stride is [2, 2], not 1.",
        ),
        ("attentionunet", {"features_per_stage": [8]}, "needs a plan with at least two stages; this one has one."),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NnplugError) as caught:
        build(name, (32, 32), **(TINY[name] | arguments))
    assert str(caught.value) == message


def test_refusals_of_the_plan() -> None:
    with pytest.raises(NnplugError) as caught:
        build("vnet", (32, 32), plan=plan_of(2, conv_op="torch.nn.Conv1d"))
    assert str(caught.value) == "works with the conv_op Conv2d or Conv3d; the plan has Conv1d."
    with pytest.raises(NnplugError) as caught:
        build("dynunet", (32, 32), plan=plan_of(2, norm_op="torch.nn.LayerNorm"))
    assert str(caught.value) == (
        "can not take the plan's norm_op LayerNorm. Name MONAI's layer: network_builder.norm_name=batch"
    )
